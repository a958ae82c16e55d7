"""What a job stands on once it runs, whatever it trains: world, session, run directory, checkpoints, trackers."""
