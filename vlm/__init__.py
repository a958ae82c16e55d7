"""One task: the vision-language model, its data and its training loop. A client of ``launcher.runtime``."""
