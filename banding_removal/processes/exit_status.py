"""The exit code of a process, and the message that it ends with."""

import traceback

from banding_removal.data.volume import VolumeError
from banding_removal.errors import (
    CheckpointError,
    ConfigError,
    RunFailedError,
    RunInUseError,
    StudyError,
)
from banding_removal.processes.signals import Stopped

FAILED = 1  # a bug, or a process or machine that died
USER_ERROR = 2  # something that the user can fix: a path, a setting, a file, a disk
REQUEUE = 75  # stopped and saved: the same command goes on (EX_TEMPFAIL of sysexits.h)
INTERRUPTED = 130  # by Ctrl-C, as shells report it


USER_ERRORS = (
    *(ConfigError, VolumeError, CheckpointError, RunInUseError, StudyError),
    *(OSError, FloatingPointError, RunFailedError),
)


class RankError(Exception):
    """Another process has failed. `code` is the exit code that says how."""

    def __init__(self, message: str | None, code: int) -> None:
        super().__init__(message, code)
        self.message = message  # None: the other process has printed it
        self.code = code

    def __str__(self) -> str:
        return self.message or f"another process ended with exit code {self.code}"


def exit_code(error: BaseException) -> int:
    """The exit code of a process that an exception ends."""
    if isinstance(error, RankError):
        return error.code
    if isinstance(error, Stopped):
        return INTERRUPTED if error.signal_name == "SIGINT" else REQUEUE
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED
    return USER_ERROR if isinstance(error, USER_ERRORS) else FAILED


def describe_error(error: BaseException) -> str | None:
    """What to print about an exception that ends the process.

    Returns:
        One message for what the user can fix, else the traceback; None: nothing is left to say.
    """
    if isinstance(error, RankError):
        return error.message
    if isinstance(error, Stopped):
        return f"{error}; give the same command again to continue"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; give the same command again to continue from the last checkpoint"
    if isinstance(error, USER_ERRORS):
        name = type(error).__name__
        # An error from a data loading worker contains its traceback, with the message at the end.
        return f"{name}: {str(error).rpartition(f'{name}: ')[2].strip()}"
    return "".join(traceback.format_exception(error)).rstrip()
