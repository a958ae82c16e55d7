"""What jobs run in: how Apptainer (or Singularity) and pyxis are asked to run Python in a site's container.

apptainer(1) exec: ``--bind source:target[:options]``, ``--nv``, ``--pwd``; the caller's environment is handed in.
pyxis (srun's plugin of that name): ``--container-image``, ``--container-mounts=source:target[:flags],…``,
``--container-workdir``, ``--container-env``: those in which the job wins over the image.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from launcher.runtime.errors import UserError
from launcher.runtime.redaction import NAMES
from launcher.runtime.world import SCRATCH
from launcher.schema import ContainerConfig, SiteConfig

PYXIS = "pyxis"
PYTHON = "python"
"""The interpreter of an image, where the site names none."""
_FILES = (".sif", ".sqsh", ".simg", ".img")
_SCRATCH = "\ue001"
"""Stands for what the batch shell puts in for the folder on the node's own disk."""
_OF_JOBS = ("PYTHONPATH", "GLIBC_TUNABLES", "SUBMITIT_EXECUTOR")


def image_of(container: ContainerConfig, cwd: Path) -> str:
    """The image as the runtime is told: a path is made absolute, what a registry has stays as it is.

    Raises:
        UserError: it is a file or folder that is not there.
    """
    said = str(container.image)
    if not said.isprintable() or not said.strip():
        raise UserError(f"site.container.image={said!r}: should be a file, a folder or an image of a registry")
    if "://" in said or not (said.startswith(("/", "./", "../", "~")) or said.endswith(_FILES)):
        return said
    path = Path(os.path.normpath(cwd / Path(said).expanduser()))
    if not path.exists():
        raise UserError(f"site.container.image={said}: there is no such file here ({path}); build or pull it first")
    return str(path)


def shell_text(words: Iterable[str]) -> str:
    """``words`` for a batch script: nothing in them is acted upon but the scratch of ``mounts_of``."""
    return " ".join(shlex.quote(word).replace(_SCRATCH, f"""'"${SCRATCH}"'""") for word in words)


def mounts_of(site: SiteConfig, folders: Iterable[Path]) -> list[str]:
    """``source:target[:ro]`` of all that a job sees: ``folders`` and the scratch as they are, and the site's own.

    Raises:
        UserError: a folder's name holds what divides mounts.
    """
    whole: list[Path] = []
    for folder in sorted(set(folders)):  # one inside another is mounted with it
        if any(letter in str(folder) for letter in ":,"):
            raise UserError(f"{folder}: no container mounts a folder with ':' or ',' in its name; choose launch.root=…")
        if not any(folder.is_relative_to(other) for other in whole):
            whole.append(folder)
    mounts = [f"{folder}:{folder}" for folder in whole]
    mounts += [f"{_SCRATCH}:{_SCRATCH}"] if site.scratch else []
    return mounts + [_from_home(mount) for mount in site.container.mounts]


def _from_home(mount: str) -> str:
    source, _, rest = mount.partition(":")
    try:
        return f"{Path(source).expanduser()}:{rest}"
    except RuntimeError as error:
        raise UserError(f"site.container.mounts: {mount}: {error}") from None


def exec_words(container: ContainerConfig, image: str, mounts: Sequence[str], cwd: Path, gpus: bool) -> list[str]:
    """``apptainer exec … IMAGE``, which stands before the command that runs inside."""
    words = [container.runtime, "exec"]
    if gpus and "--rocm" not in container.args:
        words.append("--nv")
    for mount in mounts:
        words += ["--bind", mount]
    return [*words, "--pwd", str(cwd), *container.args, image]


def srun_words(site: SiteConfig, image: str, mounts: Sequence[str], cwd: Path) -> list[str]:
    """Options of srun by which pyxis runs a step in the image."""
    names = [*_OF_JOBS, *site.env, *(([NAMES, *sorted(site.known_secrets)]) if site.known_secrets else [])]
    names += [SCRATCH] if site.scratch else []
    return [
        f"--container-image={image}",
        f"--container-mounts={','.join(mounts)}",
        f"--container-workdir={cwd}",
        f"--container-env={','.join(names)}",
        *site.container.args,
    ]
