"""An optimizer step of model=seemore against a plain fp32 implementation of the same architecture."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from launcher.runtime.errors import ExitCode
from launcher.runtime.world import World
from sweeps.bench.report import Rows, interleaved, ratio, say

NAME = "step"
_VOCAB = 100
_LR = 1e-4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure."""
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--dropout", nargs="+", type=float, default=[0.1, 0.0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--text", type=int, default=32, help="tokens of a caption (32)")
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each side (15)")
    parser.add_argument("--compile", action="store_true", help="torch.compile ours")
    parser.add_argument("--cuda-graph", action="store_true", help="capture our whole step in one CUDA graph")


def run(args: argparse.Namespace) -> int:
    """Print a row for each dropout and precision, and how far the losses are apart over 20 steps."""
    rows: Rows = []
    for dropout in args.dropout:
        for precision in args.precision:
            plain, ours = _plain_step(args, dropout), _our_step(args, dropout, precision)
            for _ in range(3):
                plain(), ours()
            slow, fast = interleaved(_timed(plain, args.device), _timed(ours, args.device), args.rounds)
            rows.append(
                {
                    "dropout": dropout,
                    "precision": precision,
                    "plain_ms": 1e3 * statistics.median(slow),
                    "ours_ms": 1e3 * statistics.median(fast),
                    "times_faster": ratio(slow, fast),
                }
            )
    say(f"{NAME}: model=seemore, batch {args.batch}, {args.device}", rows, args.json)
    plain, ours = _plain_step(args, 0.0), _our_step(args, 0.0, "fp32")
    apart = max(abs(float(plain()) - float(ours())) for _ in range(20))
    say("step: fp32 losses over 20 steps, dropout 0", [{"largest_difference": apart}], args.json)
    return ExitCode.DONE


def _timed(step: Callable[[], Any], device: str) -> Callable[[], None]:
    import torch

    def timed() -> None:
        step()
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    return timed


def _config(dropout: float) -> Any:
    from vlm.config import ModelConfig

    return ModelConfig(
        n_embd=128,
        n_head=8,
        n_layer=8,
        n_blocks=3,
        image_embed_dim=512,
        img_size=96,
        patch_size=16,
        dropout=dropout,
        positions=1000,
        image_tokens="cls",
        norm_residual=True,
        score_scale="width",
        tie_weights=False,
    )


def make_batch(args: argparse.Namespace) -> Any:
    """The same random batch for both sides."""
    import torch

    from vlm.data.dataset import Batch

    drawn = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, _VOCAB, (args.batch, args.text + 1), generator=drawn)
    images = torch.randint(0, 256, (args.batch, 3, 96, 96), generator=drawn, dtype=torch.uint8)
    return Batch(images, tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), torch.arange(args.batch))


def _plain_model(dropout: float) -> Any:
    import torch

    from sweeps.bench.plain import PlainSeemore

    torch.manual_seed(0)
    return PlainSeemore(_config(dropout), _VOCAB)


def _plain_step(args: argparse.Namespace, dropout: float) -> Callable[[], Any]:
    import torch
    import torch.nn.functional as F

    model = _plain_model(dropout).to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LR, weight_decay=0.01)
    batch = make_batch(args)

    def step() -> torch.Tensor:
        images = (batch.images.to(args.device).float() / 255 - 0.5) / 0.5
        targets = F.pad(batch.targets.to(args.device), (1, 0), value=-100)  # the image position has no target
        logits = model(images, batch.inputs.to(args.device))
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _our_step(args: argparse.Namespace, dropout: float, precision: str) -> Callable[[], Any]:
    """One call of the trainer's own ``train_step``, on a session that holds nothing but a config and a world."""
    from vlm.convert import from_seed

    trainer = make_trainer(args, dropout, precision)
    trainer.model.load_state_dict(from_seed(_plain_model(dropout).state_dict(), source="plain model"))
    step_data = SimpleNamespace(micro_batches=[make_batch(args)], n_targets=args.batch * args.text)
    if args.cuda_graph:
        return _captured(trainer, step_data)
    return lambda: trainer.train_step(0, step_data)


def make_trainer(args: argparse.Namespace, dropout: float, precision: str, world: World | None = None) -> Any:
    """The trainer of model=seemore on a session that holds nothing but a config and a world."""
    import numpy as np

    from vlm.config import OptimConfig, PrecisionConfig, ScheduleConfig
    from vlm.trainer import Trainer

    config = SimpleNamespace(
        model=_config(dropout),
        data=SimpleNamespace(normalize="half"),
        optim=OptimConfig(kind="adamw", lr=_LR, weight_decay=0.01, betas=[0.9, 0.999], eps=1e-8, decay="all"),
        schedule=ScheduleConfig(kind="constant", warmup_steps=0, min_lr_fraction=1.0),
        precision=PrecisionConfig(kind=precision, init_scale=65536.0, growth_interval=2000),  # type: ignore[arg-type]
        trainer=SimpleNamespace(
            seed=0, max_steps=1000, epochs=None, batch_size=args.batch, grad_clip=0.0, compile=args.compile
        ),
    )
    device = "cuda:0" if args.device == "cuda" else args.device
    data: Any = SimpleNamespace(tokenizer=SimpleNamespace(vocab_size=_VOCAB, to_json=dict), train=np.arange(args.batch))
    session: Any = SimpleNamespace(config=config, world=world or World(device=device))
    return Trainer(session, data)


def _captured(trainer: Any, step_data: Any) -> Callable[[], Any]:
    """The whole step as one CUDA graph: what it costs without the time to launch its kernels one by one."""
    import torch

    step_data.micro_batches = [batch.to(trainer.world.device) for batch in step_data.micro_batches]
    for group in trainer.optimizer.param_groups:
        group["capturable"] = True

    def step() -> torch.Tensor:
        trainer.optimizer.zero_grad(set_to_none=False)
        batch = step_data.micro_batches[0]
        with trainer.precision.autocast():
            logits = trainer.model(batch.images, batch.inputs)
        from vlm.model.vlm import token_loss_sum

        loss = token_loss_sum(logits, batch.targets) / step_data.n_targets
        loss.backward()
        trainer.optimizer.step()
        return loss.detach()

    weights = [p.detach().clone() for p in trainer.model.parameters()]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        trainer.model.train()
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    with torch.no_grad():  # in place, where the graph reads: as if the warm-up had not been
        for parameter, before in zip(trainer.model.parameters(), weights, strict=True):
            parameter.copy_(before)
        for tensor in (t for state in trainer.optimizer.state.values() for t in state.values()):
            tensor.zero_()

    def replay() -> torch.Tensor:
        graph.replay()
        return loss

    return replay
