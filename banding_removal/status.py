"""What a run is doing: where it is, how fast, how long it will take, what happened to it."""

import fcntl
import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from banding_removal.checkpoint import FOLDER, list_checkpoints
from banding_removal.config import REPOSITORY, ConfigError
from banding_removal.run_folder import LOCK

EVENTS = 8
_STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ (\w+) (.*)")


@dataclass(frozen=True, kw_only=True)
class StatusSettings:
    """Which run."""

    run: Path = REPOSITORY / "logs" / "run"


def status(folder: Path) -> str:
    """A run in words, from the files in its folder alone; nothing in it is changed.

    Raises:
        ConfigError: it is no run's folder.
    """
    if not (folder / "log.txt").is_file():
        raise ConfigError(f"{folder} is no run's folder: it has no log.txt")
    rows = _rows(folder / "metrics.jsonl")
    trained = [row for row in rows if row["kind"] == "train"]
    validated = [row for row in rows if row["kind"] == "val"]
    records = _records(folder / "log.txt")
    going_on = is_locked(folder)
    lines = [f"{folder.resolve()}: {'going on' if going_on else _how_it_ended(records)}"]
    if trained:
        lines += _progress(trained[-1], folder / "metrics.jsonl", going_on=going_on)
    if validated:
        last = validated[-1]
        figures = ("ssim", "nmse", "banding", "banding_excess")
        known = [f"{key} {last[key]:.4g}" for key in figures if last.get(key) is not None]
        lines.append(f"validation after epoch {last['epoch']}: {', '.join(known)}")
    saved = list_checkpoints(folder)
    if saved:
        age = timedelta(seconds=round(time.time() - saved[-1].stat().st_mtime))
        lines.append(f"{len(saved)} checkpoints, the newest {saved[-1].name}, {age} ago")
    else:
        lines.append(f"no checkpoint in {FOLDER} yet")
    lines.append(_disk(folder))
    events = [text for level, text in records if level != "INFO"]
    if events:
        lines += ["last events:", *(f"  {text}" for text in events[-EVENTS:])]
    return "\n".join(lines)


def is_locked(folder: Path) -> bool:
    """Whether a process is writing to a run's folder."""
    try:
        file = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return False  # never begun, or of another user: then nothing is known
    try:
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    finally:
        os.close(file)
    return False


def _rows(path: Path) -> list[dict[str, Any]]:
    """Whole lines of metrics.jsonl."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def _records(path: Path) -> list[tuple[str, str]]:
    """Level and first line of each record of a log."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [(match[1], match[2]) for line in lines if (match := _STAMP.match(line))]


def _how_it_ended(records: list[tuple[str, str]]) -> str:
    level, text = records[-1] if records else ("", "")
    if text == "the run is complete" or level in ("WARNING", "ERROR"):
        return text
    return "ended without a word: killed, or its machine went down"


def _progress(row: dict[str, Any], path: Path, *, going_on: bool) -> list[str]:
    step, total, seconds = row["step"], row["total_steps"], row["step_ms"] / 1000
    left = timedelta(seconds=round((total - step) * seconds))
    lines = [
        f"epoch {row['epoch']}, step {step} of {total:.0f}, {seconds:.3g} s a step "
        f"({row['wait_ms']:.0f} ms of it waiting for data), {row['memory_gb']:.1f} GB"
    ]
    if going_on:
        last = datetime.fromtimestamp(path.stat().st_mtime)
        lines.append(
            f"about {left} left, validations not counted; last figures at {last:%Y-%m-%d %H:%M:%S}"
        )
    return lines


def _disk(folder: Path) -> str:
    used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free
    return f"disk: {used / 1e9:.2f} GB in the folder, {free / 1e9:.1f} GB free"
