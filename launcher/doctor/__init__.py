"""Examining a cluster: its settings, the folder of runs, and a real job."""
