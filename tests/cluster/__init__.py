"""A real Slurm cluster on one machine, and the workflow on it."""
