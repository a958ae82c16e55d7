"""The same configs with hydra-submitit-launcher as it comes: the other side of `python -m sweeps bench submit`."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def main(config: DictConfig) -> None:
    """A task that does nothing."""


if __name__ == "__main__":
    main()
