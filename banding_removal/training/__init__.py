"""Training: the loop, one step of both players, and what keeps a run going."""
