"""What Hydra must find under ``hydra_plugins`` (it instantiates plug-ins from nowhere else). Thin on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from omegaconf import DictConfig


class GridSweeper(BasicSweeper):
    """The grid of all swept values. Checks every member before the first one starts; writes no ``multirun.yaml``."""

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Launch one run for each combination of the swept values.

        Raises:
            UserError: members that do not fit, all of them named.
        """
        # Not while Hydra scans for plug-ins: that is part of every --help.
        from launcher.compose import require_basic_launcher
        from launcher.sweep import complete_members

        assert self.launcher is not None and self.config is not None
        require_basic_launcher(self.config.hydra.runtime.choices)
        params = [f"{key}={value}" for key, value in self.params.items()]
        parser = OverridesParser.create(config_loader=self._loader)
        overrides = parser.parse_overrides(params + arguments)
        grid = self.split_arguments(overrides, None)[0]
        varying = sorted({o.key_or_group for o in overrides if o.is_sweep_override()})
        members = complete_members(grid, varying, self._compose)
        results: list[Sequence[JobReturn]] = []
        for chunk in self.split_overrides_to_chunks(members, self.max_batch_size):
            start = sum(map(len, results))
            results.append(self.launcher.launch(chunk, initial_job_idx=start))
        for job in (job for batch in results for job in batch):
            job.return_value  # noqa: B018  (raises what the job raised)
        return results

    @property
    def _loader(self) -> Any:
        assert self.hydra_context is not None
        return self.hydra_context.config_loader

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        config: DictConfig = self._loader.load_sweep_config(self.config, list(overrides))
        return config
