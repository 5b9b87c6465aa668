"""The phantom: knees drawn at random, scanned, and written as fastMRI files."""
