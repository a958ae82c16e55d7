"""Searching over runs, comparing finished ones, and measuring."""
