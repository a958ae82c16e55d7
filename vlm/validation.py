"""Looking at a model: its loss on rows it does not train on, and the captions it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from launcher.runtime.distributed import sum_over_ranks
from launcher.runtime.world import World
from vlm.data.dataset import CaptionRows
from vlm.model.generate import generate
from vlm.model.vlm import VisionLanguageModel, token_loss_sum
from vlm.precision import Precision


@torch.inference_mode()
def mean_loss(
    model: VisionLanguageModel,
    rows: CaptionRows,
    chosen: np.ndarray,
    batch_size: int,
    world: World,
    precision: Precision,
    should_stop: Callable[[], bool] = lambda: False,
) -> float | None:
    """Nats per target token over the rows ``chosen``, shared out over the ranks, each row counted once.

    Args:
        should_stop: asked before each batch and after the last, as often on every rank, and answered alike on all.

    Returns:
        None where ``should_stop`` said yes: given up, nothing is known.
    """
    was_training = model.training
    model.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=world.device)
    parts = list(_parts(np.array_split(chosen, world.size)[world.rank], batch_size))
    most = -(-len(chosen) // (world.size * batch_size))  # batches of the rank that has most: all ask as often as it
    given_up = should_stop()
    for number in range(most):
        if given_up:
            break
        if number < len(parts):
            batch = rows.batch(parts[number]).to(world.device)
            with precision.autocast():
                logits = model(batch.images, batch.inputs)
            totals[0] += token_loss_sum(logits, batch.targets)
            totals[1] += (batch.targets >= 0).sum()
        given_up = should_stop()
    model.train(was_training)
    if given_up:  # on all ranks after the same batch: none is left waiting in the sum
        return None
    sum_over_ranks(totals)
    return float(totals[0] / totals[1])


def write_captions(
    model: VisionLanguageModel, rows: CaptionRows, chosen: np.ndarray, batch_size: int, device: str
) -> list[tuple[str, str]]:
    """(true caption, the model's greedy caption) of each of the rows ``chosen``."""
    pairs: list[tuple[str, str]] = []
    for part in _parts(chosen, batch_size):
        batch = rows.batch(part).to(device)
        # As long as the longest true caption and a little: an untrained model would never end by itself.
        written = generate(model, rows.tokenizer, batch.images, max_tokens=batch.targets.shape[1] + 8)
        pairs += zip((rows.decoded.caption(int(row)) for row in part), written, strict=True)
    return pairs


def exact_match(pairs: list[tuple[str, str]]) -> float:
    """Share of captions that the model wrote to the letter."""
    return sum(true == written for true, written in pairs) / max(len(pairs), 1)


def contact_sheet(images: np.ndarray, pairs: list[tuple[str, str]]) -> np.ndarray:
    """``images: (B, 3, H, W) uint8`` with true and written caption beside each: ``(height, width, 3) uint8``."""
    side, gap, text_width = 96, 6, 520
    sheet = Image.new("RGB", (side + text_width, (side + gap) * len(pairs)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for i, (pixels, (true, written)) in enumerate(zip(images, pairs, strict=True)):
        top = i * (side + gap)
        picture = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), (0, top))
        draw.text((side + 8, top + 4), _wrapped(f"true: {true}"), "black", font)
        draw.text(
            (side + 8, top + side // 2), _wrapped(f"model: {written}"), "green" if true == written else "red", font
        )
    return np.asarray(sheet)


def _wrapped(text: str, width: int = 66, lines: int = 2) -> str:
    """``text`` in at most ``lines`` lines of ``width`` characters, control characters shown as a dot."""
    shown = "".join(c if c.isprintable() else "·" for c in text)
    return "\n".join(shown[i : i + width] for i in range(0, min(len(shown), width * lines), width))


def _parts(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
