"""The same training with hydra-submitit-launcher as it comes: the other side of `python -m sweeps bench pack`."""

from __future__ import annotations

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def main(config: DictConfig) -> None:
    """Train one member in the job's process, as `python -m launcher.run` would."""
    from launcher.members import member_of
    from launcher.run import train
    from launcher.runtime.signals import StopFlag
    from launcher.submission.reconcile import Rule

    with open_dict(config):
        config.hydra = HydraConfig.get()
    outcome = train(member_of(config, list(config.hydra.overrides.task)), StopFlag(), Rule())
    if outcome.code:
        sys.exit(outcome.code)


if __name__ == "__main__":
    main()
