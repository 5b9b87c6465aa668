"""An evaluation as files: slices.csv, volumes.csv, results.json, table.md and figure.png."""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from banding_removal.errors import ConfigError
from banding_removal.evaluation.evaluate import Evaluation, SetResult
from banding_removal.evaluation.figure import draw
from banding_removal.evaluation.summary import Summary
from banding_removal.evaluation.table import markdown
from banding_removal.files import atomic_write

RESULTS = "results.json"
KIND = "evaluation of banding_removal"  # by which `claim_output` knows its own folders


def claim_output(folder: Path) -> None:
    """Make the folder for the results; those of an earlier evaluation may be overwritten.

    Raises:
        ConfigError: the folder holds something else, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output {folder} is a file")
    if folder.is_dir() and any(folder.iterdir()) and not _is_ours(folder / RESULTS):
        raise ConfigError(
            f"output {folder} holds files that no evaluation wrote; choose another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)


def _is_ours(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        content = json.loads(path.read_text())
    except ValueError:
        return False
    return isinstance(content, dict) and content.get("kind") == KIND


def write_report(folder: Path, evaluation: Evaluation, settings: Mapping[str, Any]) -> str:
    """Write all files, each whole or not at all; returns the text of table.md.

    Args:
        folder: as made by `claim_output`.
        evaluation: to write.
        settings: how the evaluation was made: plain values for results.json.
    """
    # written first: `claim_output` recognises the folder by it, even if writing stops here
    content = json.dumps(as_json(evaluation, settings), indent=1, allow_nan=False)
    atomic_write(folder / RESULTS, content.encode())
    atomic_write(folder / "slices.csv", csv_bytes(_slice_rows(evaluation)))
    atomic_write(folder / "volumes.csv", csv_bytes(_volume_rows(evaluation)))
    table = markdown(evaluation)
    atomic_write(folder / "table.md", table.encode())
    atomic_write(folder / "figure.png", draw(evaluation))
    return table


def as_json(evaluation: Evaluation, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything but the slices (they are in slices.csv) as plain values; NaN and Inf are null."""
    return {
        "kind": KIND,
        "format": 2,
        "settings": dict(settings),
        "sets": [_set_as_json(result) for result in evaluation.sets],
    }


def _set_as_json(result: SetResult) -> dict[str, Any]:
    return {
        "name": result.name,
        "origin": result.origin,
        "scale_factor": _known(result.scale_factor),
        "warnings": list(result.warnings),
        "overall": _summary_as_json(result.overall),
        "by": {
            grouping: {value: _summary_as_json(summary) for value, summary in groups.items()}
            for grouping, groups in result.groups.items()
        },
        "volumes": [
            {
                **asdict(volume.reference),
                "slices": len(volume.slices),
                "metrics": {name: _known(value) for name, value in volume.metrics.items()},
            }
            for volume in result.volumes
        ],
    }


def _summary_as_json(summary: Summary) -> dict[str, Any]:
    metrics = {}
    for name, metric in summary.metrics.items():
        numbers = {key: _known(getattr(metric, key)) for key in ("value", "low", "high")}
        metrics[name] = {**numbers, **({"reason": metric.reason} if metric.reason else {})}
    return {
        "volumes": summary.volumes,
        "slices": summary.slices,
        "metrics": metrics,
        "measured": {region: asdict(item) for region, item in summary.measured.items()},
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _slice_rows(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    for result in evaluation.sets:
        for volume in result.volumes:
            for item in volume.slices:
                yield {
                    "set": result.name,
                    "volume": item.volume,
                    "slice": item.slice_index,
                    "acquisition": volume.reference.acquisition,
                    "scanner": volume.reference.scanner,
                    **item.metrics,
                    **{f"{region}.reason": reason for region, reason in item.reasons.items()},
                }


def _volume_rows(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    for result in evaluation.sets:
        for volume in result.volumes:
            yield {
                "set": result.name,
                "volume": volume.reference.name,
                "slices": len(volume.slices),
                "acquisition": volume.reference.acquisition,
                "scanner": volume.reference.scanner,
                **volume.metrics,
            }


def csv_bytes(rows: Iterable[dict[str, Any]]) -> bytes:
    """Rows with the same keys, in full precision; a cell that is NaN is empty."""
    listed = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(listed[0]), lineterminator="\n")
    writer.writeheader()
    for row in listed:
        unknown = {k for k, v in row.items() if isinstance(v, float) and math.isnan(v)}
        writer.writerow({k: "" if k in unknown else v for k, v in row.items()})
    return text.getvalue().encode()
