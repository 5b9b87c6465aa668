"""Reconstruction: from a checkpoint and volumes to image files."""
