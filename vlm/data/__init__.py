"""From a CSV of pictures and captions to batches: index, cache, split, order, tokens."""
