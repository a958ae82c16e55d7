"""The environment variables that a site gives to jobs: plain ones, secrets, and the node's own disk.

Plain ones stand in the batch script. A secret stands in no file: sbatch is called with it in its environment, and Slurm
keeps that of a submitted job and hands it to each of its elements and starts (sbatch(1), ``--export``).
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager

from launcher.runtime.errors import UserError
from launcher.runtime.redaction import NAMES, looks_secret
from launcher.runtime.world import SCRATCH
from launcher.schema import SiteConfig
from launcher.submission.resources import Resources

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_MAKE_SCRATCH = f"""\
if ! srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 mkdir -p -- "${SCRATCH}"
then echo "site.scratch: ${SCRATCH} cannot be made on each node" >&2; exit 1; fi"""


def export_lines(site: SiteConfig) -> list[str]:
    """Lines of a batch script before those of ``setup``: what is plain, and the names of what is not."""
    lines = [f"export {name}={shlex.quote(str(value))}" for name, value in site.env.items()]
    if site.known_secrets:
        lines.append(f"export {NAMES}={','.join(sorted(site.known_secrets))}")
    return lines


def scratch_lines(site: SiteConfig) -> list[str]:
    """Lines of a batch script after those of ``setup``: the folder on the node's own disk, made on each node."""
    if site.scratch is None:
        return []
    said = "site.scratch: is not set on this node"
    text = _VARIABLE.sub(lambda found: f"${{{found[1] or found[2]}:?{said}}}", site.scratch)
    return [f'export {SCRATCH}="{text}"', *_MAKE_SCRATCH.splitlines()]


def variables_here(site: SiteConfig, env: Mapping[str, str]) -> dict[str, str]:
    """All of them for a process on this machine, which has the variables ``env``.

    Raises:
        UserError: ``scratch`` names a variable that is not set.
    """
    found = {name: str(value) for name, value in site.env.items()} | site.known_secrets
    if site.known_secrets:
        found[NAMES] = ",".join(sorted(site.known_secrets))
    if site.scratch is not None:
        found[SCRATCH] = _expanded(site.scratch, {**env, **found})
    return found


@contextmanager
def given(env: MutableMapping[str, str], variables: Mapping[str, str]) -> Iterator[None]:
    """Have ``variables`` in ``env`` for the time of the block: those of a run that this process trains itself."""
    before = {name: env.get(name) for name in variables}
    env.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                env.pop(name, None)
            else:
                env[name] = value


def _expanded(text: str, env: Mapping[str, str]) -> str:
    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if not env.get(name):
            raise UserError(f"site.scratch={text}: {name} is not set on this machine")
        return env[name]

    return _VARIABLE.sub(value, text)


def export_option(resources: Resources, said: str) -> list[str]:
    """The option of sbatch that lets a job have its secrets where ``--export`` keeps the environment from jobs.

    By names alone: a value in a command line is seen by everybody (``ps``), and kept by Slurm's accounting.

    Args:
        said: SBATCH_EXPORT, which is stronger than a batch script's line.
    """
    asked = resources.queue.get("additional_parameters") or {}
    said = said or str(asked.get("export") or "ALL")
    words = [word for word in said.split(",") if word]
    if not resources.site.known_secrets or "ALL" in (word.upper() for word in words):
        return []
    kept = [word for word in words if word.upper() not in ("NONE", "NIL")]
    return [f"--export={','.join([*kept, *sorted(resources.site.known_secrets)])}"]


def say_hints(site: SiteConfig, *, here: bool) -> None:
    """Say on stderr which plain variable looks like a secret, and what runs of this machine do without."""
    if here and site.container.image is not None:
        print("site.container: is for jobs of Slurm; what runs on this machine runs without it", file=sys.stderr)
    for name in filter(looks_secret, site.env):
        print(f"site.env.{name}: looks like a secret, and stands in batch scripts; site.secrets keeps it out of files",
              file=sys.stderr)  # fmt: skip
