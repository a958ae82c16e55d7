"""The job's door."""

from __future__ import annotations

import json
import os
import sys

from launcher.runtime.errors import guarded
from launcher.runtime.signals import StopFlag
from launcher.runtime.world import set_defaults


def _main() -> int:
    set_defaults(os.environ)
    stop = StopFlag()
    stop.install()
    from launcher.runtime.job import run_job
    from launcher.runtime.plan import Plan

    el = (
        int(sys.argv[sys.argv.index("--element") + 1])
        if "--element" in sys.argv
        else int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    )
    plan = Plan.from_json(json.loads(open(sys.argv[1]).read().splitlines()[el]))
    return run_job(plan, os.environ, stop).code


if __name__ == "__main__":
    sys.exit(guarded(_main))
