"""``launcher drill``: a short copy of a run, interrupted on the user's cluster, is held against one that was not."""
