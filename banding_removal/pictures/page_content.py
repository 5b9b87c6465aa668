"""What the run page shows of a history and a log: curves and events."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from banding_removal.pictures.curves import ADVERSARY_PANELS, PANELS
from banding_removal.runs.log import ending_of

History = Sequence[Mapping[str, Any]]  # a row per epoch, as in a checkpoint
_EPOCH = re.compile(r"(?:resumed after )?epoch (\d+)[/,]")


def curves(history: History) -> dict[str, Any]:
    """`epochs`, and for each metric of a panel a list of as many values; None: no value."""
    keys = [key for _, keys in (*PANELS, *ADVERSARY_PANELS) for key in keys]
    return {
        "epochs": [row["epoch"] for row in history],
        "series": {
            key: [_rounded(row.get(key)) for row in history]
            for key in keys
            if any(key in row for row in history)
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
