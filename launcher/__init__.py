"""From a config to a running job, and back: composition, plans, submission, status."""
