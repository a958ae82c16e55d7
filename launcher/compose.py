"""Hydra at arm's length: what it composed as plain values, and its many-line errors told in one."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from launcher.config_tree import CONFIG_FOLDER, CONFIG_NAME
from launcher.runtime.errors import UserError
from launcher.runtime.redaction import keep_secret, secret_in
from launcher.runtime.sections import flat, nearest

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, YAMLError)
_SECRETS = "site.secrets."


def is_hydras(error: Exception) -> bool:
    """Whether ``error`` is Hydra's or OmegaConf's word on what was typed, of its own kind or raised by its own code."""
    frames = traceback.extract_tb(error.__traceback__)
    raised_in = Path(frames[-1].filename).parts if frames else ()
    return isinstance(error, COMPOSITION_ERRORS) or (isinstance(error, ValueError) and "hydra" in raised_in)


def plain(config: DictConfig) -> dict[str, Any]:
    """The config as nested plain values, interpolations resolved, without Hydra's own section.

    Raises:
        UserError: a value is missing (``???``) or an interpolation leads nowhere; one shows a secret of the site.
    """
    ours = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    try:
        values = OmegaConf.to_container(ours, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(told(error)) from None
    assert isinstance(values, dict)
    named = {str(key): value for key, value in values.items()}
    _keep_secrets_of(named.get("site"))
    for key, value in flat(named).items():
        if not key.startswith(_SECRETS):
            require_printable(key, value)
            require_no_secret(key, value)
    return named


def _keep_secrets_of(site: Any) -> None:
    """From here on they are shown nowhere; that they are texts is the schema's to check."""
    secrets = site.get("secrets") if isinstance(site, Mapping) else None
    if isinstance(secrets, Mapping):
        keep_secret({str(name): str(value) for name, value in secrets.items() if value is not None})


def require_no_typed_secret(words: Iterable[str]) -> None:
    """See that no word of a command line, or of a sweep, is a secret: what is typed is recorded with each run.

    Raises:
        UserError: one is.
    """
    for word in words:
        key = word.lstrip("+~").partition("=")[0].partition("@")[0]
        if key == "site.secrets" or key.startswith(_SECRETS):
            raise UserError(
                f"{key}: is not to be typed, as what is typed is recorded with each run; write it into the site's "
                "file below ~/.config/seemore/site, or have that say ${oc.env:NAME} and set NAME"
            )


def compose_values(overrides: list[str]) -> dict[str, Any]:
    """What ``python -m launcher.run`` would compose from ``overrides``, as plain values.

    Raises:
        UserError: Hydra cannot compose it.
    """
    return plain(compose_whole(overrides))


def compose_whole(overrides: list[str]) -> DictConfig:
    """The same, with Hydra's own section.

    Raises:
        UserError: Hydra cannot compose it.
    """
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        try:
            return compose(CONFIG_NAME, overrides, return_hydra_config=True)
        except COMPOSITION_ERRORS as error:
            raise UserError(told(error)) from None


def require_printable(key: str, value: Any) -> None:
    """See that a text holds nothing that a terminal or a batch script would take for more than text.

    Raises:
        UserError: it holds a line break, NUL, escape or the like.
    """
    if isinstance(value, str) and not value.isprintable():
        raise UserError(f"{key}={value!r}: holds characters that cannot be printed")


def require_no_secret(key: str, value: Any) -> None:
    """See that what is written down with each run holds no secret that this process knows.

    Raises:
        UserError: it does.
    """
    if isinstance(value, str | list) and (name := secret_in(str(value))) is not None:
        raise UserError(f"{key}: holds the value of site.secrets.{name}, and would be written down")


def told(error: Exception) -> str:
    """One line for what Hydra, OmegaConf or YAML raised: the key or option, what is allowed, the nearest name."""
    text = " ".join(str(error).split())
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}: has no value, and needs one: {error.full_key}=…"
    if isinstance(error, MarkedYAMLError) and (mark := error.problem_mark) is not None:
        return f"{mark.name}, line {mark.line + 1}: cannot be read as YAML: {error.problem}"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        options = sorted(o for o in error.options if not o.startswith("_"))
        return f"{group}={option}: there is no such option{nearest(option, options)} (allowed: {', '.join(options)})"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read as key=value; put quotes around special characters ({text})"
    if unknown := re.match(r"Could not (?:override|delete)[^']*'(?P<key>[^'=]+)", text):
        return f"unknown key '{unknown['key']}'{_hint(unknown['key'])}"
    if isinstance(error, HydraException) and error.__cause__ is not None:
        text += " (" + str(error.__cause__).splitlines()[0] + ")"
    return text


def _hint(key: str) -> str:
    """Which option of its group has ``key``, or which known key is nearest to it."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        group = key.partition(".")[0]
        if group == "hydra":
            return nearest(key, _launcher_keys())
        known = _keys([])
        for option in GlobalHydra.instance().config_loader().get_group_options(group):
            with suppress(UserError, *COMPOSITION_ERRORS):  # a broken file is not what was asked for
                keys = _keys([f"{group}={option}"])
                if key in keys:
                    return f" here; {group}={option} has it"
                known |= keys
        for task in GlobalHydra.instance().config_loader().get_group_options("task"):
            with suppress(UserError, *COMPOSITION_ERRORS):  # one that lacks a value cannot be composed without it
                known |= _keys([f"task={task}"])
        return nearest(key, known)


def _launcher_keys() -> set[str]:
    """``hydra.launcher.*`` of the launcher that has most of them."""
    config = compose(CONFIG_NAME, ["hydra/launcher=submitit_slurm"], return_hydra_config=True)
    return {f"hydra.launcher.{key}" for key in config.hydra.launcher if key != "_target_"}


def _keys(overrides: list[str]) -> set[str]:
    """Every key and section of the config, e.g. ``optim.lr`` and ``optim``."""
    keys = set(flat(plain(compose(CONFIG_NAME, overrides))))
    return keys | {".".join(key.split(".")[:depth]) for key in keys for depth in range(1, key.count(".") + 1)}
