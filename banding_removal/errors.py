"""Errors that a user can fix; their messages say how."""


class ConfigError(Exception):
    """A setting that is unknown, of the wrong type, or out of range."""


class CheckpointError(Exception):
    """A checkpoint that is missing, damaged, or of another model."""


class RunInUseError(Exception):
    """Another process is writing to a run's folder."""


class RunFailedError(Exception):
    """A run that keeps failing after as many rollbacks as are allowed."""


class StudyError(Exception):
    """Files of a reader study that cannot be used; the message names each and says why."""
