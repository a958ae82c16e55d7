"""Seeing and managing runs: their states, logs, and how to cancel them."""
