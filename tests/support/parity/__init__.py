"""Comparisons with the published implementation's numbers, which lie in tests/golden."""
