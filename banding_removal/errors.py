"""Errors that a user can mend; whoever raises them says how."""


class ConfigError(Exception):
    """A setting that cannot be: unknown, of the wrong type, or out of range."""


class CheckpointError(Exception):
    """A checkpoint that is missing, damaged, or made for another model."""


class RunInUseError(Exception):
    """Another process is writing to a run's folder."""


class RunFailedError(Exception):
    """A run that fails again after all the rollbacks that it may have."""
