"""An evaluation as Markdown tables."""

import math
from collections.abc import Iterator, Mapping, Sequence

from banding_removal.evaluation.evaluate import Evaluation, SetResult
from banding_removal.evaluation.summary import Metric
from banding_removal.metrics.statistics import REGIONS

NOT_MEASURABLE = "n/a"

Column = tuple[str, str, str]  # metric, title, format
COLUMNS: tuple[Column, ...] = (
    ("ssim", "SSIM", ".4f"),
    ("nmse", "NMSE", ".4f"),
    ("psnr", "PSNR (dB)", ".2f"),
    ("hfen", "HFEN", ".3f"),
    ("low_signal.contribution", "B (dB)", ".2f"),
    ("low_signal.signed_excess", "signed excess (%)", ".3f"),
    ("low_signal.along", "along (dB)", ".2f"),
    ("low_signal.across", "across (dB)", ".2f"),
    ("low_signal.auc", "AUC", ".3f"),
    ("probe.balanced_accuracy", "probe accuracy", ".3f"),
    ("probe_low_signal.balanced_accuracy", "probe accuracy, low signal", ".3f"),
)
SINGLE_COLUMNS: tuple[Column, ...] = (
    ("contribution", "weaker: B, x alone (dB)", ".2f"),
    ("signed_excess", "weaker: signed excess, x alone (%)", ".3f"),
)
REGION_COLUMNS: tuple[Column, ...] = (
    ("contribution", "B (dB)", ".2f"),
    ("signed_excess", "signed excess (%)", ".3f"),
    ("along", "along (dB)", ".2f"),
    ("across", "across (dB)", ".2f"),
    ("auc", "AUC", ".3f"),
)
PROBE_COLUMNS: tuple[Column, ...] = (
    ("probe.balanced_accuracy", "accuracy", ".3f"),
    ("probe.auc", "AUC", ".3f"),
    ("probe.paired", "paired", ".3f"),
    ("probe_low_signal.balanced_accuracy", "low signal: accuracy", ".3f"),
    ("probe_low_signal.auc", "low signal: AUC", ".3f"),
    ("probe_low_signal.paired", "low signal: paired", ".3f"),
)
NOTES = """\
Means with 95 % intervals from resampling volumes (too narrow below about ten volumes).
SSIM, NMSE, PSNR, HFEN: means over volumes, with phase encoding along x.
B, signed excess, along, across, AUC: banding in flat low-signal pixels, means over slices, from the
pair of orientations. Without banding, B and signed excess are 0, along and across are equal, and
AUC is 0.5. A negative B or signed excess means over-corrected, which is as wrong as banding. No
single metric is enough: noise lowers B, blur lowers the excess, texture across lowers both and
raises `across`."""
PROBE_NOTES = """\
Probe: how often a newly trained classifier identifies the orientation of held-out images; 0.5
without banding. Low signal: the same for a classifier that sees the dark texture alone."""
SINGLE_NOTES = """\
Weaker, x alone: estimates of B and signed excess from phase encoding along x and the target;
compare them with each other only."""


def markdown(evaluation: Evaluation) -> str:
    """The tables: sets, regions, probes, then by acquisition and by scanner.

    The weaker metrics from one orientation are shown if a set has nothing else. A column for which
    no set has a value is left out; the reasons stand at the end.
    """
    sets = evaluation.sets
    single = _single_columns(sets)
    columns = _columns(sets)
    in_regions = REGION_COLUMNS + tuple((f"single.{name}", t, form) for name, t, form in single)
    by_set = [((s.name,), s.overall.metrics) for s in sets]
    probed = any(not math.isnan(metrics["probe.auc"].value) for _, metrics in by_set)
    notes = [NOTES, *([PROBE_NOTES] if probed else []), *([SINGLE_NOTES] if single else [])]
    parts = [overview(evaluation), "\n".join(notes)]
    parts += ["## Regions", _table(("set", "region"), in_regions, list(_by_region(sets)))]
    if probed:
        parts += ["## Probe", _table(("set",), PROBE_COLUMNS, by_set)]
    for grouping in ("acquisition", "scanner"):
        rows = [
            ((s.name, value, str(summary.volumes)), summary.metrics)
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
    """The first table, one row for each set, with warnings above it."""
    sets = evaluation.sets
    overall = sets[0].overall
    parts = [f"# Evaluation on {overall.volumes} volumes, {overall.slices} slices"]
    parts += [f"**Warning**, {s.name}: {warning}" for s in sets for warning in s.warnings]
    parts.append(_table(("set",), _columns(sets), [((s.name,), s.overall.metrics) for s in sets]))
    return "\n\n".join(parts)


def _columns(sets: Sequence[SetResult]) -> tuple[Column, ...]:
    single = _single_columns(sets)
    return COLUMNS + tuple((f"single.low_signal.{name}", t, form) for name, t, form in single)


def _single_columns(sets: Sequence[SetResult]) -> tuple[Column, ...]:
    """The weaker metrics, if a set has nothing else."""
    known = [s.overall.metrics["low_signal.contribution"].value for s in sets]
    return SINGLE_COLUMNS if any(math.isnan(value) for value in known) else ()


def _by_region(sets: Sequence[SetResult]) -> Iterator[tuple[tuple[str, str], dict[str, Metric]]]:
    """Metrics of a region, named without it: `contribution`, `single.contribution`."""
    for result in sets:
        for region in REGIONS:
            metrics = {
                name.replace(f"{region}.", ""): metric
                for name, metric in result.overall.metrics.items()
                if name.startswith((f"{region}.", f"single.{region}."))
            }
            yield (result.name, region.replace("_", " ")), metrics


def escaped(label: str) -> str:
    """A cell's text; an unescaped bar would end the cell."""
    return label.replace("|", "\\|")


def _table(
    heads: Sequence[str],
    columns: Sequence[Column],
    rows: Sequence[tuple[Sequence[str], Mapping[str, Metric]]],
) -> str:
    """A Markdown table of the columns that have a value."""
    columns = [
        column
        for column in columns
        if any(not math.isnan(metrics[column[0]].value) for _, metrics in rows)
    ]
    cells = [[*heads, *(title for _, title, _ in columns)]]
    for labels, metrics in rows:
        cells.append(
            [*map(escaped, labels), *(_cell(metrics[name], form) for name, _, form in columns)]
        )
    return aligned(cells)


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it can also be read on a console; the first row is its head.

    Bars must be escaped.
    """
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in cells
    ]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def _cell(metric: Metric, form: str) -> str:
    if math.isnan(metric.value):
        return NOT_MEASURABLE
    value, low, high = (format(x, f"z{form}") for x in (metric.value, metric.low, metric.high))
    return value if math.isnan(metric.low) else f"{value} [{low}, {high}]"


def _reasons(sets: Sequence[SetResult]) -> Iterator[str]:
    """A line for each reason, with the metrics of a set that are not measurable because of it."""
    for result in sets:
        metrics = result.overall.metrics
        prefixes: dict[str, set[str]] = {}  # region -> reasons of all its metrics
        for name, metric in metrics.items():
            reason = metric.reason if math.isnan(metric.value) else ""
            prefixes.setdefault(name.rpartition(".")[0], set()).add(reason)
        by_reason: dict[str, dict[str, None]] = {}
        for name, metric in metrics.items():
            if math.isnan(metric.value):
                prefix = name.rpartition(".")[0]
                whole_region = prefix and len(prefixes[prefix]) == 1
                by_reason.setdefault(metric.reason, {})[prefix if whole_region else name] = None
        for reason, parts in by_reason.items():
            yield f"- {result.name}: {', '.join(f'`{part}`' for part in parts)}: {reason}"
