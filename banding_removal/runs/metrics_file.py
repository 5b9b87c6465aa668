"""The metrics of a run's steps and validations: metrics.jsonl, and the same for TensorBoard."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from banding_removal.files import atomic_write, naming_file

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
_USUAL_LINE = 400  # bytes


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
                self._reopen(step)
            self._write_line(line)
            try:
                self._add_scalars(kind, values, step)
            except FileNotFoundError:  # removed a moment ago: TensorBoard opens its file by name
                is_gone = not self._path.exists()
                self._reopen(step)
                if is_gone:
                    self._write_line(line)
                self._add_scalars(kind, values, step)

    def _write_line(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()  # a run that is killed keeps what it wrote

    def _add_scalars(self, kind: str, values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            self._board.add_scalar(f"{kind}/{key}", value, step)

    def _reopen(self, step: int) -> None:
        self.close()
        self._open(step - 1)

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
