"""Comparing runs: which is best, how sure that is, and which parameter mattered."""
