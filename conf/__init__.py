"""Hydra config tree: values only. A package, so that it is found from any folder (pkg://conf)."""
