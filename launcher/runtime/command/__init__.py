"""``task=command``: any program, in any language, as a task."""
