"""``launcher drill``: a short copy of a run is interrupted on the user's own cluster, and held against one that is not."""
