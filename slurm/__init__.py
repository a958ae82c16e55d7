"""A disposable, real Slurm cluster on one machine: its room is kept, the cluster is not built yet."""
