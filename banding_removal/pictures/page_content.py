"""What the run page shows of a history and a log: curves and events."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from banding_removal.pictures.curves import PANELS, STEP_PANELS, Panels
from banding_removal.runs.log import ending_of

History = Sequence[Mapping[str, Any]]  # a row per epoch, as in a checkpoint
_EPOCH = re.compile(r"(?:resumed after )?epoch (\d+)[/,]")


def curves(history: History) -> dict[str, Any]:
    """`epochs`, and for each metric of a panel a list of as many values; None: no value."""
    return _curves([row["epoch"] for row in history], history, PANELS)


def with_start(history: History, start: Mapping[str, float]) -> History:
    """The history with the validation before stage 2, if there was one, as epoch 0."""
    if not start:
        return history
    return [{"epoch": 0, **{f"val_{key}": value for key, value in start.items()}}, *history]


def step_curves(rows: History, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same of single steps, rows of metrics.jsonl; their epochs are fractions."""
    steps = [row for row in rows if row["kind"] == "train" and row.get("total_steps")]
    epochs = settings.get("epochs", 1)
    at = [round(row["step"] * epochs / row["total_steps"], 4) for row in steps]
    return _curves(at, steps, STEP_PANELS)


def _curves(epochs: Sequence[float], rows: History, panels: Panels) -> dict[str, Any]:
    keys = [key for _, keys in panels for key in keys]
    return {
        "epochs": list(epochs),
        "series": {
            key: [_rounded(row.get(key)) for row in rows]
            for key in keys
            if any(key in row for row in rows)
        },
    }


def events(records: Sequence[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """Rollbacks, stops, resumptions and other warnings of a log, with the epoch they happened in.

    `epoch` lies half an epoch after the last one that was complete.
    """
    found = []
    epoch = 0
    for i, (when, level, text) in enumerate(records):
        match = _EPOCH.match(text)
        if match:
            epoch = int(match[1])
        kind = None
        if ending_of(records[: i + 1]) is not None:
            kind = "complete" if text == "the run is complete" else "stop"
        elif text.startswith("the run is failing"):
            kind = "rollback"
        elif text.startswith("resumed after"):
            kind = "resumed"
        elif level != "INFO":
            kind = "warning"
        if kind is not None:
            at = epoch if kind == "complete" else epoch + 0.5
            found.append({"kind": kind, "epoch": at, "when": when, "text": text})
    return found


def _rounded(value: float | None) -> float | None:
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None
