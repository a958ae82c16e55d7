"""A site as it was composed, read by its schema; what does not fit is said with the file that it stands in."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from launcher.compose import compose_whole, plain
from launcher.config_tree import CONFIG_FOLDER
from launcher.runtime.errors import UserError
from launcher.runtime.sections import parse
from launcher.schema import SiteConfig


def read_site(values: Any, name: str | None, sources: Iterable[Any]) -> SiteConfig:
    """The site that the section ``values`` of a composed config describes.

    Args:
        name: the chosen option of the group ``site``.
        sources: ``hydra.runtime.config_sources``.

    Raises:
        UserError: a key is unknown or does not fit; the file is named where there is one.
    """
    try:
        return parse(SiteConfig, values, "site")
    except UserError as error:
        files = (folder / "site" / f"{name}.yaml" for source in sources for folder in _folders(source))
        file = next((file for file in files if file.exists()), None)
        raise UserError(f"{error} (site={name}: {file})" if file else str(error)) from None


def _folders(source: Any) -> list[Path]:
    """Those that one of Hydra's sources of configs reads."""
    if source.schema == "file":
        return [Path(source.path)]
    spec = find_spec(source.path) if source.schema == "pkg" and source.path else None
    return [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []


def site_names() -> list[str]:
    """Every site that there is: those that come along, the user's own, those of a search path."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return list(GlobalHydra.instance().config_loader().get_group_options("site"))


def compose_site(name: str | None) -> SiteConfig:
    """The site ``name``, or the one that a command would take without ``site=…``.

    Raises:
        UserError: there is no such site, or a key of it does not fit.
    """
    config = compose_whole([] if name is None else [f"site={name}"])
    runtime = config.hydra.runtime
    return read_site(plain(config).get("site"), runtime.choices.get("site"), runtime.config_sources)
