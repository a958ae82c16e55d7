"""``python -m vlm``: what one does with a trained model."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from launcher.runtime.errors import ExitCode, UserError, guarded

_DESCRIPTION = """\
Use a trained vision-language model.

RUN is a run directory (runs/<sweep>/<run_id>), a sweep's folder that holds one run, or an exported folder.

  python -m vlm generate runs/demo-shapes --val 4        caption four validation pictures
  python -m vlm generate runs/demo-shapes photo.jpg      caption a picture of yours
  python -m vlm evaluate runs/demo-shapes                loss and exact captions, by split
  python -m vlm export runs/demo-shapes exported/        safetensors, config and tokenizer
  python -m vlm trace runs/demo-shapes                   where the time of a step went (profiler=steps)
  python -m vlm convert seed.pth converted/              import a seed's state dict
"""


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parsed = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    return guarded(lambda: parsed.command(parsed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m vlm", None, _DESCRIPTION, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = argparse.ArgumentParser(add_help=False)
    run.add_argument("run", type=Path, metavar="RUN")
    run.add_argument("--checkpoint", default="best", help="best (default), last, or the path of a checkpoint")
    device = argparse.ArgumentParser(add_help=False)
    device.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    device.add_argument("--json", action="store_true", help="print JSON")

    generate = commands.add_parser("generate", parents=[run, device], help="caption pictures")
    generate.add_argument("pictures", nargs="*", type=Path, metavar="PICTURE", help="JPEG, PNG or WebP files")
    generate.add_argument("--val", type=_count, default=0, metavar="N", help="caption N validation pictures of the run")
    generate.add_argument(
        "--temperature", type=_not_negative, default=0.0, help="0 (default): the likeliest token each time"
    )
    generate.add_argument(
        "--top-k", type=_positive, default=None, metavar="K", help="draw among the K likeliest tokens"
    )
    generate.add_argument("--prompt", type=_text, default="", help="what every caption begins with")
    generate.add_argument("--seed", type=_count, default=0, help="of the drawing, with a temperature above 0")
    generate.set_defaults(command=_generate)

    evaluate = commands.add_parser("evaluate", parents=[run, device], help="score a checkpoint on its data")
    evaluate.add_argument(
        "--limit", type=_positive, default=1000, metavar="N", help="rows of each split, at most (1000)"
    )
    evaluate.set_defaults(command=_evaluate)

    export = commands.add_parser("export", parents=[run], help="write safetensors, config and tokenizer")
    export.add_argument("folder", type=Path, metavar="FOLDER", help="a new folder")
    export.set_defaults(command=_export)

    trace = commands.add_parser("trace", help="explain a profiler's trace")
    trace.add_argument("run", type=Path, metavar="RUN", help="a run, a sweep's folder that holds one, or a trace file")
    trace.add_argument("--rank", type=_count, default=None, metavar="N", help="of a run: the trace of this rank")
    trace.add_argument("--top", type=_positive, default=15, metavar="N", help="operators and events shown (15)")
    trace.add_argument("--csv", type=Path, default=None, metavar="FILE", help="write all figures as CSV too")
    trace.add_argument("--json", action="store_true", help="print JSON")
    trace.set_defaults(command=_trace)

    convert = commands.add_parser("convert", help="import a seed's .pth state dict")
    convert.add_argument("file", type=Path, metavar="FILE")
    convert.add_argument("folder", type=Path, metavar="FOLDER", help="a new folder")
    convert.add_argument("--characters", type=Path, metavar="TEXT", help="UTF-8 file that holds the seed's alphabet")
    convert.add_argument("--normalize", choices=("half", "imagenet"), default="half", help="how the seed's pixels were")
    convert.set_defaults(command=_convert)
    return parser


def _count(text: str) -> int:
    """A whole number from 0 to 2**63 - 1."""
    if not 0 <= int(text) < 2**63:
        raise ValueError
    return int(text)


def _positive(text: str) -> int:
    """A whole number above 0."""
    if not 0 < int(text) < 2**63:
        raise ValueError
    return int(text)


def _not_negative(text: str) -> float:
    """A finite number from 0."""
    if not 0 <= float(text) < float("inf"):
        raise ValueError
    return float(text)


def _text(text: str) -> str:
    """A text that can be written as UTF-8."""
    text.encode()  # the error of a lone surrogate is a ValueError
    return text


def _generate(args: argparse.Namespace) -> int:
    import torch

    from vlm.trained import load_trained
    from vlm.use import caption_files, caption_validation

    trained = load_trained(args.run, args.checkpoint, args.device)
    if not args.pictures and not args.val:
        raise UserError("generate: name pictures, or ask for some of the run's own with --val N")
    options = {"prompt": args.prompt, "temperature": args.temperature, "top_k": args.top_k}
    options["generator"] = torch.Generator(args.device).manual_seed(args.seed)
    rows = caption_files(trained, args.pictures, args.device, **options)
    rows += caption_validation(trained, args.val, args.device, **options)
    for row in rows:
        print(json.dumps(row, ensure_ascii=False) if args.json else _line(row))
    return ExitCode.DONE


def _line(row: dict[str, str]) -> str:
    true = f"   (true: {row['true']})" if "true" in row else ""
    line = f"{row['picture']}: {row['caption']}{true}"
    return "".join(c if c.isprintable() else "\ufffd" for c in line)  # a caption may hold what steers a terminal


def _evaluate(args: argparse.Namespace) -> int:
    from vlm.trained import load_trained
    from vlm.use import scores

    trained = load_trained(args.run, args.checkpoint, args.device)
    found = scores(trained, args.limit, args.device)
    if args.json:
        print(json.dumps({"checkpoint": str(trained.source), "splits": found}))
        return ExitCode.DONE
    print(f"checkpoint {trained.source}")
    print(f"{'split':<14}{'rows':>6}  {'loss':>9}  exact captions")
    for split, score in found.items():
        exact = f"{score['exact']}/{score['rows']} ({100 * score['exact'] / score['rows']:.1f} %)"
        print(f"{split:<14}{score['rows']:>6}  {score['loss']:>9.4f}  {exact}")
    return ExitCode.DONE


def _export(args: argparse.Namespace) -> int:
    from vlm.trained import export, load_trained

    trained = load_trained(args.run, args.checkpoint)
    export(args.folder, trained.model, trained.tokenizer, trained.normalize, origin=str(trained.source))
    print(args.folder)
    return ExitCode.DONE


def _trace(args: argparse.Namespace) -> int:
    from vlm.trace import explain_run, write_csv

    report = explain_run(args.run, args.rank)
    if args.csv:
        write_csv(args.csv, report, args.top)
    print(json.dumps(report.to_json(args.top)) if args.json else report.text(args.top), end="\n" if args.json else "")
    return ExitCode.DONE


def _convert(args: argparse.Namespace) -> int:
    from vlm.convert import config_of, from_seed
    from vlm.data.tokenizer import SeedTokenizer
    from vlm.torch_file import load_file
    from vlm.trained import build_model, export

    state = load_file(args.file)
    weights = from_seed(state, args.file)
    vocab_size = len(weights["decoder.tokens.weight"])
    tokenizer = None
    if args.characters:
        tokenizer = SeedTokenizer("".join(sorted(set(_alphabet(args.characters)))))
        if tokenizer.vocab_size != vocab_size:
            raise UserError(
                f"{args.characters}: has {tokenizer.vocab_size - 1} different characters, with <pad> "
                f"{tokenizer.vocab_size} tokens; the checkpoint has {vocab_size}"
            )
    try:
        config = config_of(state)
    except (ValueError, LookupError, ArithmeticError) as error:
        raise UserError(f"{args.file}: is no seemore checkpoint ({error})") from None
    model = build_model(config, args.normalize, vocab_size, weights, args.file)
    export(args.folder, model, tokenizer, args.normalize, origin=str(args.file))
    print(args.folder)
    return ExitCode.DONE


def _alphabet(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--characters {file}: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
