"""The command: what ``python -m launcher drill RUN`` does, from the run to the verdict."""

from __future__ import annotations

import json
import time
from collections.abc import MutableMapping
from pathlib import Path

from launcher.drill.account import judge
from launcher.drill.copies import ON_SLURM, make_copies
from launcher.drill.course import Course, say
from launcher.drill.places import OnSlurm, OnThisMachine, Place
from launcher.runtime.errors import ExitCode, UserError
from launcher.runtime.signals import StopFlag
from launcher.slurm_cli import require_slurm


def drill(
    word: str,
    cwd: Path,
    env: MutableMapping[str, str],
    *,
    steps: int,
    patience_s: float,
    keep: bool = False,
    as_json: bool = False,
) -> int:
    """Interrupt a short copy of the run that ``word`` stands for, and print whether that changed anything.

    Args:
        steps: of each copy.
        patience_s: longest time that a copy may wait in the queue, each time.
        keep: leave the folder of the copies, which otherwise goes with a drill that came out exact.

    Returns:
        DONE where the interrupted copy ended with the same bits and lost nothing that was promised, else USER_ERROR.

    Raises:
        UserError: there is no such run, it cannot be copied, or a copy did not come to its end.
    """
    began = time.monotonic()
    copies = make_copies(word, steps, cwd)
    if copies.launcher == ON_SLURM:
        require_slurm(env)
    place: Place = OnSlurm.of(copies, env) if copies.launcher == ON_SLURM else OnThisMachine(env)
    stop = StopFlag()
    stop.install(hang_up=True)
    course = Course(copies, place, patience_s=patience_s)
    try:
        course.run(stop)
    except UserError as error:
        if copies.folder.exists():
            say(f"what the copies left: {copies.folder}")
        raise error
    found = judge(copies, course.logs, steps)
    took_s = time.monotonic() - began
    stays = keep or not found.exact
    if not stays:
        copies.remove()
    if as_json:
        print(
            json.dumps({**found.to_json(), "took_s": round(took_s, 1), "folder": str(copies.folder) if stays else None})
        )
    else:
        print("\n".join(found.lines()))
        say(f"took {took_s:.0f} s" + (f"; what the copies left: {copies.folder}" if stays else ""))
    return ExitCode.DONE if found.exact else ExitCode.USER_ERROR
