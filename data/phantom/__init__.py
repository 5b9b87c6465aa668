"""The phantom: random knees, scanned and written as fastMRI files."""
