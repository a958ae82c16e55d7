"""Named sweeps: ``python -m launcher.run -m sweep=lr_batch`` runs what ``sweeps/lr_batch.yaml`` says.

The file is no config of Hydra's: it says what to vary, what to hold fixed, and what runs are compared by. What is
typed on top wins. ``launcher.sweep_files`` says where it is found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from launcher.points import Axis, axis_of, point_of, product, text_of
from launcher.runtime.errors import UserError
from launcher.runtime.sections import Section, parse
from launcher.sweep_files import find_sweep

_WORD = "sweep="
_KEY = "hydra.sweeper.named="
"""What the word becomes for Hydra, which hands it to our sweeper."""


@dataclass(frozen=True, kw_only=True)
class Vary(Section):
    """What varies; all axes multiply."""

    grid: dict[str, Any] | None = None
    """Values by key: a list, ``{log: [from, to], count: n}``, ``{linear: [from, to], count: n}`` or ``{range: [start,
    stop, step]}``. Each key is an axis."""
    paired: list[dict[str, Any]] | None = None
    """Blocks of keys whose values are walked together. Each block is an axis."""
    points: list[dict[str, Any]] | None = None
    """Ready-made points, an axis of their own."""


@dataclass(frozen=True, kw_only=True)
class SweepFile(Section):
    """A file of ``sweeps/``."""

    experiment: str | None = None
    """Option of the config group that each member starts from."""
    metric: str = "best_val_loss"
    """What runs are compared by: a number of ``summary.json``, or a curve such as ``val/loss``."""
    direction: Literal["minimize", "maximize"] = "minimize"
    """Which end of the metric is the good one."""
    fixed: dict[str, Any] = field(default_factory=dict)
    """The same for every member."""
    vary: Vary | None = None
    """What ``launcher.run -m sweep=NAME`` runs; None: the file is for another command."""
    search: dict[str, Any] = field(default_factory=dict)
    """Spaces that ``python -m sweeps study`` draws from, which reads them."""
    study: dict[str, Any] = field(default_factory=dict)
    """How it searches."""


@dataclass(frozen=True)
class NamedSweep:
    """A sweep's file, read."""

    path: Path
    file: SweepFile

    @property
    def name(self) -> str:
        """By default also the name of the folder of its runs."""
        return self.path.stem

    def shared(self) -> Axis:
        """The one point that all members have: ``experiment`` and ``fixed``."""
        experiment = {} if self.file.experiment is None else {"experiment": self.file.experiment}
        return Axis("fixed", (point_of(experiment | self.file.fixed),))

    def axes(self) -> list[Axis]:
        """What varies, in the order of the file.

        Raises:
            UserError: there is nothing, or an axis without a value.
        """
        vary = self.file.vary
        if vary is None:
            told = f"it is for python -m sweeps study {self.path}" if self.file.search else "say what to vary"
            raise UserError(f"{self.path}: has no 'vary'; {told}")
        try:
            if not (axes := list(_axes(vary))):
                raise UserError("vary: is empty (allowed here: grid, paired, points)")
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None
        return axes

    @property
    def varying(self) -> set[str]:
        """Every key that an axis of the file varies."""
        return {key for axis in self.axes() for key in axis.keys}

    def members(self, typed: Sequence[Axis], weaker: Sequence[Axis], hydras: Collection[str]) -> list[list[str]]:
        """The overrides of each member.

        Args:
            typed: what was typed on top, an axis for each key.
            weaker: the same that an experiment's ``hydra.sweeper.params`` say.
            hydras: keys of Hydra's own that were typed; they hold for every member anyway.

        Raises:
            UserError: an axis is empty, a key stands twice, or there are too many members.
        """
        own = [self.shared(), *self.axes()]
        stronger = {key for axis in typed for key in axis.keys} | set(hydras)
        axes = [axis.without(stronger) for axis in own] + list(typed)
        known = {key for axis in (*own, *typed) for key in axis.keys}
        axes += [axis for axis in weaker if not axis.keys & known]
        if "launch.name" not in known:
            axes.append(Axis("launch.name", (point_of({"launch.name": self.name}),)))
        try:
            return product(axes)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None


def read_sweep(path: Path) -> NamedSweep:
    """Read a sweep's file.

    Raises:
        UserError: it cannot be read, is no mapping, or holds a key or a value that does not belong there.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=False)  # reads 1e-3 as a number; YAML does not
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is no text ({error})") from None
    except OSError as error:
        if error.errno is None:  # what OmegaConf says to a number or a text
            raise UserError(f"{path}: should be a mapping of keys and values") from None
        raise UserError(f"{path}: {error.strerror}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: should be a mapping of keys and values")
    try:
        return NamedSweep(path, parse(SweepFile, {str(key): value for key, value in values.items()}))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def words_for_hydra(words: Sequence[str], folders: Sequence[Path], cwd: Path) -> list[str]:
    """The words of a command, ``sweep=NAME`` replaced by what tells Hydra of the file.

    Raises:
        UserError: there is no such sweep, its file does not fit, or the command has no ``-m``.
    """
    said = [word.removeprefix(_WORD).strip("'\"") for word in words if word.startswith(_WORD)]
    if not said:
        return list(words)
    rest = [word for word in words if not word.startswith(_WORD)]
    if said[-1] in ("", "null"):
        return rest
    if not {"-m", "--multirun"} & set(rest):
        raise UserError(f"sweep={said[-1]}: is many runs; add -m (python -m launcher.run -m sweep={said[-1]} …)")
    sweep = read_sweep(find_sweep(said[-1], folders, cwd).absolute())
    sweep.members([], [], [])  # before Hydra composes anything
    rest.append(_KEY + text_of(str(sweep.path)))
    chosen = any(word.lstrip("+~").partition("=")[0] == "experiment" for word in rest)
    if sweep.file.experiment is not None and not chosen:  # as if typed: it may say how to sweep
        rest.append(f"experiment={text_of(sweep.file.experiment)}")
    return rest


def as_typed(words: Sequence[str]) -> list[str]:
    """The opposite of ``words_for_hydra``, for what remembers a command."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parse_override = OverridesParser.create().parse_override
    return [_WORD + str(parse_override(word).value()) if word.startswith(_KEY) else word for word in words]


def _axes(vary: Vary) -> Iterator[Axis]:
    for name in ("grid", "paired", "points"):
        said = getattr(vary, name)
        if said is not None and not said:
            raise UserError(f"vary.{name}: is empty")
    for key, said in (vary.grid or {}).items():
        yield axis_of("vary.grid", {key: said})
    for index, block in enumerate(vary.paired or []):
        yield axis_of(f"vary.paired[{index}]", block)
    if vary.points:
        yield Axis("vary.points", tuple(point_of(point) for point in vary.points))
