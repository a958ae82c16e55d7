"""A disposable, real Slurm cluster on one machine, private to a folder. Standard library only."""
