"""The members of a sweep: the config of each, composed as Hydra would and much quicker, and checked all together.

Hydra takes 60 to 100 ms to compose a config, a thousand members a minute and a half. Most overrides of a member only
give a known key another plain value. Hydra composes what is left of the overrides, once for each combination; the
plain values are then put in their places.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Quote, QuotedString, ValueType
from omegaconf import DictConfig, OmegaConf

from launcher.compose import (
    COMPOSITION_ERRORS,
    plain,
    require_no_secret,
    require_no_typed_secret,
    require_printable,
    told,
)
from launcher.naming import default_name
from launcher.plan import read_sections
from launcher.runtime.errors import UserError
from launcher.runtime.plan import Parent
from launcher.runtime.sections import flat
from launcher.site import read_site

_OTHER_KEY = re.compile(r"\$\{(?!oc\.env:)")
"""An interpolation that may read another key: ``${optim.lr}``, ``${oc.select:optim.lr}``, or all overrides as
``${hydra.job.override_dirname}`` does. ``${oc.env:HOME}`` alone cannot."""
_WHOLE_NUMBER = re.compile(r"([a-z_]\w*(?:\.[a-z_]\w*)+)=(-?(?:0|[1-9]\d*))", re.ASCII)
"""What a range of seeds is made of: ``trainer.seed=17``. Hydra's parser takes half a millisecond for each."""
_MISSING = "???"
_OF_A_RUN = ("hydra/launcher", "hydra.launcher.", "hydra.searchpath")
"""Keys of Hydra's own section that say something of each run."""
_MANY = 20
"""After so many different problems nobody reads on; after so many that Hydra finds nobody waits for more of them."""


@dataclass(frozen=True)
class Member:
    """One composed config."""

    overrides: tuple[str, ...]
    values: dict[str, Any]
    """The whole config without Hydra's section, plain values, interpolations resolved."""
    choices: dict[str, str | None]
    """Option of each config group."""
    queue: dict[str, Any]
    """``hydra.launcher.*``, resolved."""
    hydras: tuple[str, ...] = ()
    """What was typed for Hydra itself about the run: its launcher, and where configs are looked for."""
    parent: Parent | None = None
    """From whose state it begins; None: from scratch."""

    @property
    def words(self) -> tuple[str, ...]:
        """All that composes it again, each once; the site too, which LAUNCHER_SITE may have chosen."""
        words = (*self.hydras, *self.overrides)
        if "site" not in map(key_of, words):
            words += (f"site={self.choices.get('site') or 'null'}",)
        return tuple(dict.fromkeys(reversed(words)))[::-1]  # of the same key the last one counts

    @property
    def launcher(self) -> str:
        """The chosen ``hydra/launcher``."""
        return str(self.choices.get("hydra/launcher"))


@dataclass(frozen=True)
class _Stem:
    member: Member
    leaves: frozenset[str]
    """Keys with a plain value."""
    entangled: bool
    """Whether a value is computed from another key: then nothing may be put in its place from outside."""


class Composer:
    """From overrides to members, for one command line."""

    def __init__(self, loader: Any, master: DictConfig) -> None:
        """``loader`` is Hydra's config loader, ``master`` what it composed from the command line itself."""
        self._loader = loader
        self._master = master
        self._leaves = _leaves(master)
        self._stems: dict[tuple[str, ...], _Stem | None] = {}

    def compose(self, overrides: Sequence[str]) -> Member:
        """The member with ``overrides``, as Hydra composes it.

        Raises:
            UserError, or one of ``COMPOSITION_ERRORS``: an override does not fit.
        """
        plain_ones: list[Override] = []
        rest: list[Override] = []
        for override in map(_parse, overrides):
            (plain_ones if self._is_plain(override) else rest).append(override)
        keys = {o.key_or_group for o in plain_ones}
        if any(_meets(o, key) for o in rest for key in keys):  # then their order matters
            return self._by_hydra(overrides)
        stem = self._stem(tuple(str(o.input_line) for o in rest))
        if stem is None or stem.entangled or not keys <= stem.leaves:
            return self._by_hydra(overrides)
        values = _copy(stem.member.values)
        for override in plain_ones:
            set_value(values, override.key_or_group, override.value())
        return replace(stem.member, overrides=tuple(overrides), values=values)

    def _is_plain(self, override: Override) -> bool:
        value = override.value()
        is_text = isinstance(value, str) and "${" not in value and value != _MISSING
        return (
            override.type in (OverrideType.CHANGE, OverrideType.FORCE_ADD)  # ++key=value of a key that is there
            and override.package is None
            and override.key_or_group in self._leaves
            and (value is None or is_text or isinstance(value, bool | int | float))
        )

    def _stem(self, overrides: tuple[str, ...]) -> _Stem | None:
        """None: these alone make no config; with the plain values, one of which may be missing, they may."""
        if overrides not in self._stems:
            self._stems[overrides] = None
            with suppress(UserError, *COMPOSITION_ERRORS):
                config = self._load(overrides)
                self._stems[overrides] = _Stem(member_of(config, overrides), _leaves(config), _entangled(config))
        return self._stems[overrides]

    def _by_hydra(self, overrides: Sequence[str]) -> Member:
        return member_of(self._load(overrides), overrides)

    def _load(self, overrides: Sequence[str]) -> DictConfig:
        config: DictConfig = self._loader.load_sweep_config(self._master, list(overrides))
        return config


def member_of(config: DictConfig, overrides: Sequence[str]) -> Member:
    """The member that a whole config of Hydra's is."""
    require_no_typed_secret(overrides)
    queue = OmegaConf.to_container(config.hydra.launcher, resolve=True)
    assert isinstance(queue, dict)
    choices = dict(config.hydra.runtime.choices)
    named = {str(key): value for key, value in queue.items()}
    values = plain(config)
    read_site(values.get("site"), choices.get("site"), config.hydra.runtime.config_sources)
    for key, value in flat(named).items():
        require_no_secret(f"hydra.launcher.{key}", value)
    return Member(tuple(overrides), values, choices, named, _hydras(config))


def _hydras(config: DictConfig) -> tuple[str, ...]:
    """Overrides of Hydra's own section that say something of the run, and ``--config-dir`` as one."""
    typed = tuple(text for text in config.hydra.overrides.hydra if key_of(text).startswith(_OF_A_RUN))
    folders = [source.path for source in config.hydra.runtime.config_sources if source.provider == "command-line"]
    if folders and "hydra.searchpath" not in map(key_of, typed):
        quoted = QuotedString(text=f"file://{Path(folders[0]).absolute()}", quote=Quote.single).with_quotes()
        return (f"hydra.searchpath=[{quoted}]", *typed)
    return typed


def key_of(override: str) -> str:
    """``optim.lr`` of ``++optim.lr=1``; a group's name of its choice."""
    return override.lstrip("+~").partition("=")[0]


def complete_members(grid: Sequence[Sequence[str]], varying: Sequence[str], composer: Composer) -> list[Member]:
    """Each member of a sweep, with what a member of this sweep has by default; checked.

    Args:
        grid: the overrides of each member.
        varying: names of the keys that the sweep varies.
        composer: of this command line.

    Raises:
        UserError: the members that do not fit, all in one line; there is none; or their launchers differ.
    """
    if not grid:
        raise UserError(f"the sweep has no member: one of {', '.join(varying)} has no value")
    members = [_completed(member, varying) for member in checked_members(grid, composer)]
    require_one_launcher(members)
    return members


def checked_members(grid: Sequence[Sequence[str]], composer: Composer) -> list[Member]:
    """Each member as it is composed from its overrides; checked.

    Raises:
        UserError: the members that do not fit, all in one line.
    """
    problems: dict[str, int] = {}
    hydras: dict[str, str] = {}
    composing = 0
    members: list[Member] = []
    for overrides in grid:
        try:
            member = composer.compose(overrides)
            read_sections(member.values)
            members.append(member)
        except COMPOSITION_ERRORS as error:
            composing += 1
            if str(error) not in hydras:
                hydras[str(error)] = told(error)
            _count(problems, hydras[str(error)])
        except UserError as error:
            _count(problems, str(error))
        if len(problems) > _MANY or composing > _MANY:
            raise UserError("; ".join(problems) + "; and more")
    if problems:
        raise UserError("; ".join(problems) + f" ({sum(problems.values())} of {len(grid)} members)")
    return members


def require_one_launcher(members: Iterable[Member]) -> str:
    """The launcher that all ``members`` choose.

    Raises:
        UserError: they differ.
    """
    launchers = sorted({member.launcher for member in members})
    if len(launchers) != 1:
        raise UserError(f"hydra/launcher is {' for some members and '.join(launchers)} for others: submit them apart")
    return launchers[0]


def set_value(values: dict[str, Any], key: str, value: Any) -> None:
    """Set the dotted ``key`` in nested ``values``, all of whose sections exist.

    Raises:
        UserError: the value cannot be printed, or holds a secret.
    """
    require_printable(key, value)
    require_no_secret(key, value)
    *sections, name = key.split(".")
    for section in sections:
        values = values[section]
    values[name] = value


def _completed(member: Member, varying: Sequence[str]) -> Member:
    extra: list[tuple[str, str]] = []
    if member.values["launch"]["name"] is None:
        extra.append(("launch.name", default_name(member.choices, varying)))
    if member.values["checkpoint"]["at_end"] is None:
        extra.append(("checkpoint.at_end", "weights"))
    for key, value in extra:
        set_value(member.values, key, value)
    return replace(member, overrides=(*member.overrides, *(f"{key}={value}" for key, value in extra)))


def _count(problems: dict[str, int], problem: str) -> None:
    problems[problem] = problems.get(problem, 0) + 1


@cache
def _parse(text: str) -> Override:
    if (number := _WHOLE_NUMBER.fullmatch(text)) is None:
        return _parser().parse_override(text)
    return Override(OverrideType.CHANGE, number[1], ValueType.ELEMENT, int(number[2]), input_line=text)


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def _meets(override: Override, key: str) -> bool:
    """Whether ``override`` may give the plain ``key`` a value too."""
    other = override.key_or_group
    above = key.startswith(other + ".") and isinstance(override.value(), dict)
    return other == key or other.startswith(key + ".") or above


def _leaves(config: DictConfig) -> frozenset[str]:
    return frozenset(flat(_unresolved(config)))


def _entangled(config: DictConfig) -> bool:
    queue = OmegaConf.to_container(config.hydra.launcher, resolve=False)
    values = flat({"ours": _unresolved(config), "queue": queue})
    return any(_OTHER_KEY.search(str(value)) for value in values.values())


def _unresolved(config: DictConfig) -> dict[str, Any]:
    ours = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    values = OmegaConf.to_container(ours, resolve=False)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}
