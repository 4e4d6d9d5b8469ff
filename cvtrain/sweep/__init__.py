"""`cvtrain -m`: Hydra makes the jobs; here each has its place, and what became of it is kept."""
