"""The state of a run: progress, speed, time left, and what has happened to it."""

import contextlib
import fcntl
import os
import shutil
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from banding_removal.config.settings import REPOSITORY
from banding_removal.errors import ConfigError
from banding_removal.runs.checkpoint import FOLDER, list_checkpoints
from banding_removal.runs.folder import in_latest
from banding_removal.runs.lock import LOCK, LocksUnavailableError, lock_file
from banding_removal.runs.log import KILLED, ending_of, read_records
from banding_removal.runs.metrics_file import METRICS, read_rows

EVENTS = 8
PROGRESS = {"epoch", "step", "total_steps", "step_ms", "wait_ms", "memory_gb"}
STALLED_S = 60.0  # without new metrics, and
STALLED_ROWS = 20.0  # times the usual time between two rows of metrics


@dataclass(frozen=True, kw_only=True)
class StatusSettings:
    """Settings of scripts/status.py."""

    run: Path = REPOSITORY / "logs" / "run"  # folder of the run


def status(folder: Path) -> str:
    """A run's state in words, from the files in its folder, which are only read.

    Raises:
        ConfigError: it is not the folder of a run.
    """
    folder = in_latest(folder)
    if not (folder / "log.txt").is_file():
        raise ConfigError(f"{folder} is not the folder of a run: it has no log.txt")
    rows = read_rows(folder / METRICS)
    trained = [row for row in rows if row["kind"] == "train" and row.keys() >= PROGRESS]
    validated = [row for row in rows if row["kind"] == "val"]
    records = read_records(folder / "log.txt")
    ended = ending_of(records) or KILLED
    try:
        running = is_locked(folder)
    except LocksUnavailableError:
        running = ending_of(records) is None
        ended = ending_of(records) or ""
    lines = [f"{folder.resolve()}: {'running' if running else ended}"]
    if trained:
        lines += _progress(trained[-2:], folder / METRICS, running=running)
    else:
        lines.append("no step has been logged yet")
    if validated:
        last = validated[-1]
        shown = ("ssim", "nmse", "banding", "banding_signed_excess")
        known = [f"{key} {last[key]:.4g}" for key in shown if last.get(key) is not None]
        lines.append(f"validation after epoch {last['epoch']}: {', '.join(known)}")
    saved = list_checkpoints(folder)
    if saved:
        age = timedelta(seconds=round(time.time() - saved[-1].stat().st_mtime))
        lines.append(f"{len(saved)} checkpoints, the newest {saved[-1].name}, {age} ago")
    else:
        lines.append(f"no checkpoint in {FOLDER} yet")
    lines.append(_disk(folder))
    events = [f"{when} {text}" for when, level, text in records if level != "INFO"]
    if events:
        lines += ["last events:", *(f"  {text}" for text in events[-EVENTS:])]
    return "\n".join(lines)


def is_locked(folder: Path) -> bool:
    """Whether a process is writing to a run's folder.

    Raises:
        LocksUnavailableError: the file system does not tell.
    """
    try:
        file = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return False  # no run has begun there; or it is another user's, and its lock cannot be read
    try:
        return not lock_file(file, fcntl.LOCK_SH)
    finally:
        os.close(file)


def _progress(rows: list[dict[str, Any]], path: Path, *, running: bool) -> list[str]:
    """Progress of a run, from its last row of metrics and the one before, if there is one."""
    row = rows[-1]
    step, total, seconds = row["step"], row["total_steps"], row["step_ms"] / 1000
    lines = [
        f"epoch {row['epoch']}, step {step} of {total:.0f}, {seconds:.3g} s per step "
        f"({row['wait_ms']:.0f} ms of it waiting for data), {row['memory_gb']:.1f} GB"
    ]
    if running:
        left = timedelta(seconds=round((total - step) * seconds))
        age = time.time() - path.stat().st_mtime
        last = datetime.fromtimestamp(time.time() - age)
        lines.append(
            f"about {left} left, without validation; last metrics at {last:%Y-%m-%d %H:%M:%S}"
        )
        usual = (step - rows[0]["step"]) * seconds
        if age > max(STALLED_S, STALLED_ROWS * usual):
            lines.append(f"no metrics for {timedelta(seconds=round(age))}: validating, or stalled")
    return lines


def _disk(folder: Path) -> str:
    used = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a temporary file that is gone
            used += path.stat().st_size if path.is_file() else 0
    free = shutil.disk_usage(folder).free
    return f"disk: {used / 1e9:.2f} GB in the folder, {free / 1e9:.1f} GB free"
