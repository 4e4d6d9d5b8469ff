"""Pages to look at in a browser: one file each, that needs nothing else."""
