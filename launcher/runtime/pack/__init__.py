"""Packed members: workers that claim runs from a queue of files and run each in a process forked from a warm parent."""
