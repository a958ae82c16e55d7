"""``python -m sweeps``: search, compare, measure."""

from __future__ import annotations

import argparse
import sys

from launcher.runtime.errors import guarded
from sweeps.bench import add_bench
from sweeps.compare.command import add_compare
from sweeps.study import add_study

_DESCRIPTION = """\
Search with Optuna: in one process, in many, or in an array of Slurm jobs.

  python -m sweeps study NAME      what sweeps/NAME.yaml says to search (study --help says more)

Compare runs: which is best, how sure that is, which setting mattered.

  python -m sweeps compare runs/demo --html demo.html

Measure this machine (all of it, or one): speeds as ratios from one run, the two sides taking turns.

  python -m sweeps bench step      an optimizer step of model=seemore against a plain implementation
  python -m sweeps bench ranks     two ranks that train together against two processes that do not talk
  python -m sweeps bench save      what a save costs the training loop, and the restore, against torch.save
  python -m sweeps bench loader    a warm epoch of the loader against pandas + base64 + Pillow
  python -m sweeps bench memory    memory of indexing and reading a large CSV
  python -m sweeps bench help      start of `launcher.run --help` against `import hydra`
  python -m sweeps bench submit    a sweep of 1,000 to a real Slurm, against stock hydra-submitit-launcher (minutes)
  python -m sweeps bench rerun     the same command again on a sweep of 1,000 that is done
  python -m sweeps bench member    what one more packed member costs over its training
  python -m sweeps bench pack      200 tiny runs on a real Slurm, packed, against stock (minutes)
  python -m sweeps bench compare   `compare` of 1,000 runs, with all its files
  python -m sweeps bench profiler  what profiler=steps costs a step outside of its windows
  python -m sweeps bench trace     `vlm trace` of a trace of 50 MB
  python -m sweeps bench requeue   from a preemption to the first new step, on a real Slurm (minutes)
"""


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m sweeps", None, _DESCRIPTION, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_compare(
        commands.add_parser("compare", help="rank runs and explain", formatter_class=argparse.RawTextHelpFormatter)
    )
    add_bench(commands.add_parser("bench", help="measure"))
    add_study(commands.add_parser("study", help="search"))
    parsed, words = parser.parse_known_args(arguments)
    if words and (not hasattr(parsed, "overrides") or any(word.startswith("-") for word in words)):
        parser.error(f"unrecognized arguments: {' '.join(words)}")
    if words:  # overrides behind an option
        parsed.overrides += words
    return guarded(lambda: parsed.command(parsed))


if __name__ == "__main__":
    sys.exit(main())
