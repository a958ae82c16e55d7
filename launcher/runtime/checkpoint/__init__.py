"""Checkpoints: a copy of the state, written beside the training, committed by a rename, verified before it is used."""
