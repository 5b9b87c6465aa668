"""What a run reports in words: console and log.txt."""

import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from io import TextIOWrapper
from logging.handlers import MemoryHandler, WatchedFileHandler
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from banding_removal.processes.exit_status import USER_ERRORS, describe_error
from banding_removal.processes.signals import Stopped

log = logging.getLogger(__name__)

_RECORD = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ (\w+) (.*)")
# How the last record of a log begins, unless the run was killed.
_ENDINGS = ("the run is complete", "the run ended", "the run was interrupted", "stopped by ")
KILLED = "ended without a message: killed, or its machine went down"  # of a log without one


def read_records(path: Path) -> list[tuple[str, str, str]]:
    """Time, level and first line of each record of a log; none if there is no such file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [(match[1], match[2], match[3]) for line in lines if (match := _RECORD.match(line))]


def ending_of(records: Sequence[tuple[str, str, str]]) -> str | None:
    """How and why a run ended, from its last record; None: it was killed, or is still running."""
    text = records[-1][2] if records else ""
    return text if text.startswith(_ENDINGS) else None


class _LogFile(WatchedFileHandler):
    """A log file that is created again if it was removed. A failure to write it ends no run.

    If the disk is full, checkpoints or metrics will fail, too, and end the run with their message.
    """

    def _open(self) -> TextIOWrapper:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Report on stderr that the record could not be written."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._complain(error)
        else:
            super().handleError(record)

    def close(self) -> None:
        """Close the file, which writes what is still buffered."""
        try:
            super().close()
        except OSError as error:
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        print(f"cannot write {self.baseFilename}: {error}", file=sys.stderr)  # noqa: T201


@contextmanager
def early_records(rank: int = 0) -> Iterator[list[logging.LogRecord]]:
    """Collect log records until there is a folder; `logging_to` then writes them first.

    If the body raises, rank 0 prints the warnings: they may say why.
    """
    root = logging.getLogger()
    level = root.level
    handler = MemoryHandler(capacity=sys.maxsize, flushLevel=sys.maxsize)
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield handler.buffer
    except BaseException:
        for record in handler.buffer:
            if rank == 0 and record.levelno >= logging.WARNING:
                print(record.getMessage(), file=sys.stderr)  # noqa: T201
        raise
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


@contextmanager
def logging_to(
    folder: Path, early: Sequence[logging.LogRecord] = (), rank: int = 0
) -> Iterator[None]:
    """Send log records to the console and to <folder>/log.txt, whose last line says how it ended.

    If an earlier process was killed, its last line does not say that: a warning is logged.

    Args:
        folder: must exist.
        early: records to write first.
        rank: of this process; all but rank 0 write only to log_rank<N>.txt.
    """
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    path = folder / ("log.txt" if rank == 0 else f"log_rank{rank}.txt")
    before = read_records(path)
    file = _LogFile(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(logging.Formatter("%(message)s"))
    if rank == 0:
        root.addHandler(console)
    root.addHandler(file)
    try:
        if before and ending_of(before) is None:
            log.warning(
                "the previous process ended without a message, after %s: it was killed, or its "
                "machine went down",
                before[-1][0],
            )
        for record in early:
            root.handle(record)
        with logging_redirect_tqdm(loggers=[root]) if rank == 0 else nullcontext():
            yield
        log.info("the run is complete")
    except Stopped as stopped:
        log.warning("%s; give the same command again to continue", stopped)
        raise
    except KeyboardInterrupt:
        log.warning("the run was interrupted from the keyboard")
        raise
    except BaseException as error:
        # The full traceback goes to the file only: the console shows the exception anyway.
        root.removeHandler(console)
        log.exception("the run ended with %s", _in_a_line(error))
        raise
    finally:
        root.removeHandler(console)
        root.removeHandler(file)
        root.setLevel(level)
        file.close()


def _in_a_line(error: BaseException) -> str:
    named = f"{type(error).__name__}: {error}"
    words = describe_error(error) if isinstance(error, USER_ERRORS) else named
    return " ".join((words or named).split())
