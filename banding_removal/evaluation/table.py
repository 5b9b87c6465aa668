"""An evaluation as Markdown tables."""

import math
from collections.abc import Iterator, Mapping, Sequence

from banding_removal.evaluation.evaluate import Evaluation, SetResult
from banding_removal.evaluation.measure import REGIONS
from banding_removal.evaluation.summary import Figure

NOT_MEASURABLE = "n/a"

Column = tuple[str, str, str]  # figure, title, format
COLUMNS: tuple[Column, ...] = (
    ("ssim", "SSIM", ".4f"),
    ("nmse", "NMSE", ".4f"),
    ("psnr", "PSNR (dB)", ".2f"),
    ("hfen", "HFEN", ".3f"),
    ("low_signal.contribution", "B (dB)", ".2f"),
    ("low_signal.excess", "excess (%)", ".3f"),
    ("low_signal.along", "along (dB)", ".2f"),
    ("low_signal.across", "across (dB)", ".2f"),
    ("low_signal.auc", "AUC", ".3f"),
    ("probe.balanced_accuracy", "probe accuracy", ".3f"),
)
SINGLE_COLUMNS: tuple[Column, ...] = (
    ("contribution", "weaker: B, x alone (dB)", ".2f"),
    ("excess", "weaker: excess, x alone (%)", ".3f"),
)
REGION_COLUMNS: tuple[Column, ...] = (
    ("contribution", "B (dB)", ".2f"),
    ("excess", "excess (%)", ".3f"),
    ("signed_excess", "signed excess (%)", ".3f"),
    ("along", "along (dB)", ".2f"),
    ("across", "across (dB)", ".2f"),
    ("auc", "AUC", ".3f"),
)
PROBE_COLUMNS: tuple[Column, ...] = (
    ("probe.balanced_accuracy", "accuracy", ".3f"),
    ("probe.auc", "AUC", ".3f"),
    ("probe.paired", "paired", ".3f"),
)
NOTES = """\
Means with 95 % intervals from resampling volumes (too narrow below about ten). SSIM, NMSE, PSNR and
HFEN: means over volumes, of phase encoding along x. B, excess, along, across, AUC: banding in flat
low-signal pixels, over slices, from the pair of orientations; without banding B 0, excess 0, along
and across alike, AUC 0.5. No single one is enough: noise lowers B, blur lowers the excess, texture
across lowers both and raises `across`. Probe: how often a fresh classifier tells the orientation of
held-out images; 0.5 without banding. Weaker, x alone: estimates of B and excess from phase encoding
along x and the target, to be compared with each other only."""


def markdown(evaluation: Evaluation) -> str:
    """The tables: sets, regions, probe, then by acquisition and by scanner.

    The weaker figures from one orientation are shown where a set has nothing else. A column that is
    not known of any set is left out; the reason stands at the end.
    """
    sets = evaluation.sets
    single = _single_columns(sets)
    columns = _columns(sets)
    in_regions = REGION_COLUMNS + tuple((f"single.{name}", t, form) for name, t, form in single)
    by_set = [((s.name,), s.overall.figures) for s in sets]
    parts = [overview(evaluation), NOTES]
    parts += ["## Regions", _table(("set", "region"), in_regions, list(_by_region(sets)))]
    if any(not math.isnan(figures["probe.auc"].value) for _, figures in by_set):
        parts += ["## Probe", _table(("set",), PROBE_COLUMNS, by_set)]
    for grouping in ("acquisition", "scanner"):
        rows = [
            ((s.name, value, str(summary.volumes)), summary.figures)
            for value in sets[0].groups[grouping]
            for s in sets
            for summary in [s.groups[grouping][value]]
        ]
        parts += [f"## By {grouping}", _table(("set", grouping, "volumes"), columns, rows)]
    reasons = list(_reasons(sets))
    if reasons:
        parts += ["## Not measurable", "\n".join(reasons)]
    return "\n\n".join(parts) + "\n"


def overview(evaluation: Evaluation) -> str:
    """The first table, one row a set, with warnings above it."""
    sets = evaluation.sets
    overall = sets[0].overall
    parts = [f"# Evaluation on {overall.volumes} volumes, {overall.slices} slices"]
    parts += [f"**Warning**, {s.name}: {warning}" for s in sets for warning in s.warnings]
    parts.append(_table(("set",), _columns(sets), [((s.name,), s.overall.figures) for s in sets]))
    return "\n\n".join(parts)


def _columns(sets: Sequence[SetResult]) -> tuple[Column, ...]:
    single = _single_columns(sets)
    return COLUMNS + tuple((f"single.low_signal.{name}", t, form) for name, t, form in single)


def _single_columns(sets: Sequence[SetResult]) -> tuple[Column, ...]:
    """The weaker figures, where a set has nothing else."""
    known = [s.overall.figures["low_signal.contribution"].value for s in sets]
    return SINGLE_COLUMNS if any(math.isnan(value) for value in known) else ()


def _by_region(sets: Sequence[SetResult]) -> Iterator[tuple[tuple[str, str], dict[str, Figure]]]:
    """Figures of a region without its name: `contribution`, `single.contribution`."""
    for result in sets:
        for region in REGIONS:
            figures = {
                name.replace(f"{region}.", ""): figure
                for name, figure in result.overall.figures.items()
                if name.startswith((f"{region}.", f"single.{region}."))
            }
            yield (result.name, region.replace("_", " ")), figures


def _table(
    heads: Sequence[str],
    columns: Sequence[Column],
    rows: Sequence[tuple[Sequence[str], Mapping[str, Figure]]],
) -> str:
    """A Markdown table, padded to be read on a console, too."""
    columns = [
        column
        for column in columns
        if any(not math.isnan(figures[column[0]].value) for _, figures in rows)
    ]
    cells = [[*heads, *(title for _, title, _ in columns)]]
    for labels, figures in rows:
        # a bar would end the cell
        names = [label.replace("|", "\\|") for label in labels]
        cells.append([*names, *(_cell(figures[name], form) for name, _, form in columns)])
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in cells
    ]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def _cell(figure: Figure, form: str) -> str:
    if math.isnan(figure.value):
        return NOT_MEASURABLE
    value = format(figure.value, form)
    if math.isnan(figure.low):
        return value
    return f"{value} [{format(figure.low, form)}, {format(figure.high, form)}]"


def _reasons(sets: Sequence[SetResult]) -> Iterator[str]:
    """A line for each reason, with the figures of a set that it keeps from being known."""
    for result in sets:
        figures = result.overall.figures
        prefixes: dict[str, set[str]] = {}  # region -> reasons of all its figures
        for name, figure in figures.items():
            reason = figure.reason if math.isnan(figure.value) else ""
            prefixes.setdefault(name.rpartition(".")[0], set()).add(reason)
        by_reason: dict[str, dict[str, None]] = {}
        for name, figure in figures.items():
            if math.isnan(figure.value):
                prefix = name.rpartition(".")[0]
                together = prefix and len(prefixes[prefix]) == 1
                by_reason.setdefault(figure.reason, {})[prefix if together else name] = None
        for reason, parts in by_reason.items():
            yield f"- {result.name}: {', '.join(f'`{part}`' for part in parts)}: {reason}"
