"""How a process ends: exit codes, and what is said about an error."""

import traceback

from banding_removal.data.volume import VolumeError
from banding_removal.errors import CheckpointError, ConfigError, RunFailedError, RunInUseError
from banding_removal.processes.signals import Stopped

FAILED = 1  # a bug, or a machine's failure
USER_ERROR = 2  # what a user can mend: a path, a key, a file, a disk
REQUEUE = 75  # stopped and saved: the same command goes on (EX_TEMPFAIL of sysexits.h)
INTERRUPTED = 130  # as a shell reports Ctrl-C


USER_ERRORS = (
    *(ConfigError, VolumeError, CheckpointError, RunInUseError),
    *(OSError, FloatingPointError, RunFailedError),
)


class RankError(Exception):
    """Another process failed, or ended; `code` is the exit code that tells how."""

    def __init__(self, message: str | None, code: int) -> None:
        super().__init__(message, code)
        self.message = message  # None: it has been said
        self.code = code

    def __str__(self) -> str:
        return self.message or f"another process ended with exit code {self.code}"


def exit_code(error: BaseException) -> int:
    """The exit code for an exception that ends the process."""
    if isinstance(error, RankError):
        return error.code
    if isinstance(error, Stopped):
        return INTERRUPTED if error.signal_name == "SIGINT" else REQUEUE
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED
    return USER_ERROR if isinstance(error, USER_ERRORS) else FAILED


def in_words(error: BaseException) -> str | None:
    """What to say about it: a line for what a user can mend, else the traceback; None: nothing."""
    if isinstance(error, RankError):
        return error.message
    if isinstance(error, Stopped):
        return f"{error}; the same command goes on from there"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command goes on from the last checkpoint"
    if isinstance(error, USER_ERRORS):
        name = type(error).__name__
        # A loading process sends its whole traceback along: the message is what stands last.
        return f"{name}: {str(error).rpartition(f'{name}: ')[2].strip()}"
    return "".join(traceback.format_exception(error)).rstrip()
