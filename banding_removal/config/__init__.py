"""Configuration: every setting, and recipes that set several at once."""
