"""Evaluation: sets of reconstructions, measured against targets and compared."""
