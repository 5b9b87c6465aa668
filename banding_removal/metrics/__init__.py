"""Metrics: numbers about images, from any reconstruction code."""
