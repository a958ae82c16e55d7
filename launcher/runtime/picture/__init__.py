"""The pictures of a run: losses over steps, and where the time of a step goes."""
