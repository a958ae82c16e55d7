"""What Hydra must find under ``hydra_plugins`` (it instantiates plug-ins from nowhere else). Thin on purpose."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

# Modules of ours are imported inside functions: Hydra scans this one for every --help.


class GridSweeper(BasicSweeper):
    """The grid of all swept values, a named sweep's too. Checks every member before the first one starts."""

    def __init__(self, max_batch_size: int | None, params: Any = None, named: str | None = None) -> None:
        """``named``: file of a named sweep."""
        super().__init__(max_batch_size, params)
        self._named = named

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember the task: members may choose another launcher than the command line."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self._task_function = task_function

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Launch one run for each combination of the swept values.

        Raises:
            UserError: members that do not fit, all of them named.
        """
        from launcher.members import Composer, complete_members, key_of
        from launcher.named_sweep import read_sweep
        from launcher.points import swept_words
        from launcher.runtime.errors import UserError
        from launcher.submission.goal import Goal, record_here

        size = self.max_batch_size
        if size is not None and (not isinstance(size, int) or size < 1):
            raise UserError(f"hydra.sweeper.max_batch_size={size}: should be a whole number of at least 1, or null")
        params = swept_words(self.params)
        overrides = self._parsed(params + arguments)
        varying = {o.key_or_group for o in overrides if o.is_sweep_override()}
        assert self.config is not None
        goal = None
        if self._named is None:
            grid = self.split_arguments(overrides, None)[0]
        else:
            sweep = read_sweep(Path(self._named))
            hydras = [key_of(word) for word in self.config.hydra.overrides.hydra]
            grid = sweep.members(self._axes(arguments), self._axes(params), hydras)
            goal = Goal(sweep.file.metric, sweep.file.direction, sweep.name)
            varying |= sweep.varying
        members = complete_members(grid, sorted(varying), Composer(self._loader, self.config))
        launcher = self._launcher(members[0])
        if isinstance(launcher, QueueLauncher):  # a queue has its own limits: launch.parallel, array_parallelism
            return [launcher.launch_members(members, goal=goal)]
        from launcher.submission.in_process import foretell

        if goal is not None:
            members = record_here(members, goal, Path.cwd())
        foretell(members)
        results: list[Sequence[JobReturn]] = []
        for batch in self.split_overrides_to_chunks([list(m.overrides) for m in members], size):
            results.append(launcher.launch(list(batch), initial_job_idx=sum(map(len, results))))
        for job in (job for batch in results for job in batch):
            job.return_value  # noqa: B018  (raises what the job raised)
        return results

    def _parsed(self, words: list[str]) -> list[Override]:
        return OverridesParser.create(config_loader=self._loader).parse_overrides(words)

    def _axes(self, words: list[str]) -> list[Any]:
        """An axis for each key of what was typed; of the same key the last one counts."""
        from launcher.points import Axis

        axes = {}
        for override in self._parsed(words):
            key, choices = override.key_or_group, self.split_arguments([override], None)[0]
            axes[key] = Axis(key, tuple({key: word} for (word,) in choices))
        return list(axes.values())

    @property
    def _loader(self) -> Any:
        assert self.hydra_context is not None
        return self.hydra_context.config_loader

    def _launcher(self, member: Any) -> Launcher:
        """The launcher that the members choose: a swept option may choose another than the command line does."""
        assert self.config is not None and self.launcher is not None and self.hydra_context is not None
        if member.launcher == self.config.hydra.runtime.choices["hydra/launcher"]:
            return self.launcher
        config = self._loader.load_sweep_config(self.config, list(member.overrides))
        return Plugins.instance().instantiate_launcher(self.hydra_context, self._task_function, config)


class QueueLauncher(Launcher):
    """Hands runs to a queue: Slurm's, or one of processes on this machine."""

    def __init__(self, **params: Any) -> None:
        """``params`` are those of the command line; each member brings its own."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember what Hydra composes members with."""
        self._loader: Any = hydra_context.config_loader
        self._config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Launch runs for a sweeper that is not ours: it needs their values, so this waits for them."""
        from launcher.members import Composer, complete_members

        asked = set(self._config.hydra.overrides.task)
        varying = sorted({text.partition("=")[0].lstrip("+") for texts in job_overrides for text in set(texts) - asked})
        members = complete_members(job_overrides, varying, Composer(self._loader, self._config))
        return self.launch_members(members, values_needed=True)

    def launch_members(self, members: Sequence[Any], values_needed: bool = False, goal: Any = None) -> list[JobReturn]:
        """Launch composed members; the result of each is its metric where it was waited for, else its receipt."""
        from launcher.submission.dispatch import dispatch

        values = dispatch(members, os.environ, Path.cwd(), values_needed=values_needed, goal=goal)
        return [
            JobReturn(overrides=list(member.overrides), status=JobStatus.COMPLETED, _return_value=value)
            for member, value in zip(members, values, strict=True)
        ]


class SlurmLauncher(QueueLauncher):
    """``hydra/launcher=submitit_slurm``."""


class LocalLauncher(QueueLauncher):
    """``hydra/launcher=submitit_local``."""


class UserConfigs(SearchPathPlugin):
    """Lets users keep files of config groups in ``conf`` of their own project, and in ``~/.config/seemore``."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add each of the folders that is there."""
        from launcher.config_tree import other_folders

        for provider, folder in other_folders(Path.cwd(), os.environ):
            search_path.append(provider=provider, path=f"file://{folder}")
