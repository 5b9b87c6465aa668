"""Pictures: grids of slices, and curves."""
