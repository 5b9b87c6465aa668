"""Results of a study as files: table.md, means.csv, comparisons.csv and figure.png."""

import io
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from banding_removal.evaluation.report import csv_bytes
from banding_removal.evaluation.table import NOT_MEASURABLE, aligned, escaped
from banding_removal.files import atomic_write
from banding_removal.metrics.bootstrap import Estimate
from banding_removal.reader_study.score import StudyResult
from banding_removal.reader_study.statistics import LEVEL, POWER

NOTES = f"""\
Means with 95 % intervals from resampling volumes and readers. Repeated cases count once, as they
were first rated. Difference: rank of the first set minus that of the second; below 0, the first is
better. Win rate: how often the first is rated better than the second; a tie counts one half.
p: Wilcoxon's signed-rank test over volumes; p (Holm): corrected for all rows of the table. The
chance that any value below {LEVEL:g} is a false finding is {LEVEL:.0%} at most."""


def write_results(folder: Path, result: StudyResult) -> str:
    """Write all files, each whole or not at all; returns the text of table.md.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = markdown(result)
    atomic_write(folder / "table.md", table.encode())
    atomic_write(folder / "means.csv", csv_bytes(_flat(asdict(item)) for item in result.means))
    atomic_write(
        folder / "comparisons.csv", csv_bytes(_flat(asdict(item)) for item in result.comparisons)
    )
    atomic_write(folder / "figure.png", draw(result))
    return table


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Estimates as three columns: `rank`, `rank.low`, `rank.high`."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= {name: value["value"], **{f"{name}.{e}": value[e] for e in ("low", "high")}}
        elif value is not None:
            flat[name] = value
    return flat


def markdown(result: StudyResult) -> str:
    """All results as tables."""
    key = result.key
    volumes = len({case.volume for case in key.cases})
    title = f"# Reader study: {len(key.cases)} cases from {volumes} volumes"
    of = f"{len(result.readers)} of {len(key.readers)} readers"
    minutes = ", ".join(
        f"{reader} {seconds / 60:.0f} min"
        for reader, seconds in zip(result.readers, result.seconds, strict=True)
    )
    best = "; scores from 1 to 5, 5 is best" if key.rating == "score" else ""
    parts = [title, f"{of}: {minutes}. Ranks: 1 is best{best}.", NOTES]
    parts += ["## Mean ranks", *_mean_tables(result)]
    parts += ["## Pairs", _pairs(result), _needed(result)]
    parts += ["## Agreement", _agreement(result)]
    return "\n\n".join(parts) + "\n"


def _mean_tables(result: StudyResult) -> Iterator[str]:
    """A table for all slices, then one for each kind."""
    criteria = result.key.criteria
    for kind in dict.fromkeys(item.slices for item in result.means):
        means = [item for item in result.means if item.slices == kind]
        count = means[0].cases
        cells = [[f"{kind} ({count} case{'s' if count > 1 else ''})", *criteria]]
        for name in result.key.sets:
            row = {item.criterion: item for item in means if item.set == name}
            cells.append([escaped(name), *(_estimate(row[c].rank) for c in criteria)])
            if result.key.rating == "score":
                scores = (row[c].score for c in criteria)
                cells.append([f"{escaped(name)}: score", *(_estimate(s) for s in scores if s)])
        yield aligned(cells)


def _pairs(result: StudyResult) -> str:
    heads = ["criterion", "first", "second", "difference", "win rate", "p", "p (Holm)"]
    cells = [[*heads, "cases needed"]]
    for item in result.comparisons:
        names = [escaped(name) for name in (item.criterion, item.first, item.second)]
        marked = f"**{_p(item.p_holm)}**" if item.p_holm < LEVEL else _p(item.p_holm)
        numbers = [_estimate(item.difference), _estimate(item.win_rate), _p(item.p), marked]
        known = not math.isnan(item.volumes_needed)
        needed = f"{item.volumes_needed:.0f}" if known else NOT_MEASURABLE
        cells.append([*names, *numbers, needed])
    return aligned(cells)


def _needed(result: StudyResult) -> str:
    per_volume = len(result.key.cases) / len({case.volume for case in result.key.cases})
    return (
        f"Cases needed: with this many, a difference of {result.difference:g} in mean rank would "
        f"be significant in {POWER:.0%} of studies\nwith as many readers, if each case is from "
        f"another volume (in this study, there are {per_volume:.3g} cases of each)."
    )


def _agreement(result: StudyResult) -> str:
    cells = [["criterion", "between readers", "within readers", "equal when repeated"]]
    for item in result.agreements:
        equal = NOT_MEASURABLE if math.isnan(item.identical) else f"{item.identical:.0%}"
        cells.append([item.criterion, _alpha(item.between), _alpha(item.within), equal])
    return (
        "Krippendorff's alpha for ordinal ratings: 1 is perfect agreement, 0 is chance.\n\n"
        f"{aligned(cells)}"
    )


def _estimate(estimate: Estimate) -> str:
    value, low, high = (format(x, "z.2f") for x in (estimate.value, estimate.low, estimate.high))
    return value if math.isnan(estimate.low) else f"{value} [{low}, {high}]"


def _alpha(value: float) -> str:
    return NOT_MEASURABLE if math.isnan(value) else format(value, "z.2f")


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def draw(result: StudyResult) -> bytes:
    """Mean ranks of all criteria, as PNG."""
    key, buffer = result.key, io.BytesIO()
    with mpl.rc_context({"text.parse_math": False}):  # a set's name may contain $ signs
        width, height = 1 + 2.9 * len(key.criteria), 1.3 + 0.45 * len(key.sets)
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, len(key.criteria), sharex=True, sharey=True, squeeze=False)[0]
        for axis, criterion in zip(axes.tolist(), key.criteria, strict=True):
            for row, name in enumerate(key.sets):
                (rank,) = (
                    item.rank
                    for item in result.means
                    if (item.slices, item.criterion, item.set) == ("all", criterion, name)
                )
                errors = None
                if not math.isnan(rank.low):
                    errors = [[rank.value - rank.low], [rank.high - rank.value]]
                axis.errorbar(rank.value, row, xerr=errors, fmt="o", color=f"C{row}", capsize=4)
            axis.axvline((len(key.sets) + 1) / 2, color="0.6", linestyle=":")
            axis.set_title(criterion, fontsize=11)
            axis.grid(axis="x", alpha=0.3)
        axes[0].set_yticks(range(len(key.sets)), key.sets)
        axes[0].set_ylim(len(key.sets) - 0.5, -0.5)
        axes[0].set_xlim(0.9, len(key.sets) + 0.1)
        axes[0].set_xticks(range(1, len(key.sets) + 1))
        figure.supxlabel("mean rank (1 is best; dotted: no difference)", fontsize=10)
        figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
