"""Pictures: pages of slices, curves, and the run page."""
