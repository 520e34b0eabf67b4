"""Training runs: the loop, their folders, several processes."""
