"""Faults: what happens to runs, and files that are not what they should be."""
