"""What a run reports: console, log.txt, metrics.jsonl and TensorBoard."""

import json
import logging
import math
import re
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from io import TextIOWrapper
from logging.handlers import MemoryHandler, WatchedFileHandler
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm.contrib.logging import logging_redirect_tqdm

from banding_removal.files import atomic_write, naming_file
from banding_removal.processes.exit_status import USER_ERRORS, describe_error
from banding_removal.processes.signals import Stopped

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
_USUAL_LINE = 400  # bytes
_RECORD = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ (\w+) (.*)")
# How the last record of a log begins, unless the run was killed.
_ENDINGS = ("the run is complete", "the run ended", "the run was interrupted", "stopped by ")


class MetricsWriter:
    """Writes metrics as one JSON object per line, and the same to TensorBoard."""

    def __init__(self, folder: Path, after: int = 0) -> None:
        """Continue after a step; lines of later steps, which will be repeated, are dropped."""
        self._path = folder / METRICS
        if self._path.exists():
            _cut(self._path, after)
        self._open(after)

    def _open(self, after: int) -> None:
        board = self._path.parent / "tensorboard"
        board.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a", encoding="utf-8")
        with naming_file(board):
            self._board = SummaryWriter(str(board), purge_step=after + 1)

    def write(self, kind: str, *, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Add a line. NaN and infinity are written as null, since JSON has neither.

        Raises:
            OSError: it cannot be written; the message names the file.
        """
        row = {key: value if math.isfinite(value) else None for key, value in values.items()}
        line = {"kind": kind, "epoch": epoch, "step": step, **row}
        with naming_file(self._path):
            if not self._path.exists():  # removed or moved: the open file has no name
                self.close()
                self._open(step - 1)
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()  # a run that is killed keeps what it wrote
            for key, value in values.items():
                self._board.add_scalar(f"{kind}/{key}", value, step)

    def close(self) -> None:
        """Close the files. An error is only logged: it must not hide the one that ends the run."""
        for part in (self._file, self._board):
            try:
                part.close()
            except OSError as error:
                log.warning("the last lines of %s could not be written: %s", self._path, error)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, without lines that are damaged or incomplete."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    return [row for line in lines if (row := _row(line)) is not None]


def spread_rows(path: Path, most: int) -> list[dict[str, Any]]:
    """About `most` rows, spread evenly over a metrics.jsonl; all of a short one.

    However long the file is, only the lines that are returned are read.
    """
    if not path.exists():
        return []
    size = path.stat().st_size
    if size <= most * _USUAL_LINE:
        return read_rows(path)
    found: dict[int, dict[str, Any]] = {}
    with path.open("rb") as file:
        for part in range(most):
            file.seek(part * size // most)
            if part:
                file.readline()  # the rest of a line
            start = file.tell()
            row = _row(file.readline().decode(errors="replace"))
            if row is not None:
                found[start] = row
    return list(found.values())


def _row(line: str) -> dict[str, Any] | None:
    if not line.endswith("\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and row.keys() >= {"kind", "epoch", "step"} else None


def _cut(path: Path, last_step: int) -> None:
    """Keep complete lines up to a step."""
    rows = read_rows(path)
    kept = "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= last_step).encode()
    if kept != path.read_bytes():
        atomic_write(path, kept)


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


def _report_console(record: logging.LogRecord) -> None:
    """Report, once, that the console cannot be written, such as a pipe that was closed."""
    error = sys.exc_info()[1]
    if isinstance(error, OSError):
        _complain_of_console(str(error))
    else:
        logging.Handler().handleError(record)


@cache
def _complain_of_console(reason: str) -> None:
    with suppress(OSError):
        print(f"cannot write to the console: {reason}; log.txt goes on", file=sys.stderr)  # noqa: T201


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
        folder: of the run.
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
    console.handleError = _report_console  # type: ignore[method-assign]
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
            for handler in root.handlers:  # tqdm has replaced that of the console
                if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):
                    handler.handleError = _report_console  # type: ignore[method-assign]
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


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory use in GB: allocated on the GPU, or resident of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes, but bytes on macOS.
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9
