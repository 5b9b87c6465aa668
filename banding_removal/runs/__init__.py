"""A run on disk (folder, log, checkpoints), and what its settings build."""
