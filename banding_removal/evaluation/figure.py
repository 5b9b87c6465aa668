"""An evaluation as one picture: metrics with intervals, and banding against image quality."""

import io
import math
import textwrap
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from banding_removal.evaluation.evaluate import Evaluation, SetResult
from banding_removal.evaluation.summary import Metric

# metric, title, value without banding or error (None: only differences matter, no bars)
PANELS: tuple[tuple[str, str, float | None], ...] = (
    ("low_signal.contribution", "banding B, dB (none: 0)", 0.0),
    ("low_signal.signed_excess", "signed excess, rms, % of signal (none: 0)", 0.0),
    ("background.signed_excess", "signed excess in the background, %", 0.0),
    ("probe.balanced_accuracy", "probe accuracy (none: 0.5)", 0.5),
    ("probe_low_signal.balanced_accuracy", "probe accuracy, low signal (none: 0.5)", 0.5),
    ("ssim", "SSIM", None),
    ("nmse", "NMSE", 0.0),
    ("hfen", "HFEN", 0.0),
)
ROWS, COLUMNS = 3, 3
NAME_WIDTH = 22  # characters of a set's name on a line
MARKERS = "osD^vPX*<>"


def draw(evaluation: Evaluation) -> bytes:
    """The picture as PNG."""
    # a set's name may contain $ signs, which are not formulas
    with mpl.rc_context({"text.parse_math": False}):
        buffer = io.BytesIO()
        _picture(evaluation.sets).savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()


def _picture(sets: tuple[SetResult, ...]) -> Figure:
    rows_of_names = sum(len(_wrapped(result.name).splitlines()) for result in sets)
    height = ROWS * (1.5 + 0.32 * max(rows_of_names, 3))
    figure = Figure(figsize=(14, height), layout="constrained")
    axes = figure.subplots(ROWS, COLUMNS).flatten().tolist()
    for i, (axis, (name, title, origin)) in enumerate(zip(axes, PANELS, strict=False)):
        _panel(axis, sets, name, origin)
        axis.set_title(title, fontsize=11)
        if i % COLUMNS:
            axis.set_yticklabels([])
    _scatter(axes[-1], sets)
    overall = sets[0].overall
    figure.suptitle(
        f"{overall.volumes} volumes, {overall.slices} slices; 95 % intervals over volumes"
    )
    return figure


def _panel(axis: Axes, sets: tuple[SetResult, ...], name: str, origin: float | None) -> None:
    """One metric: a row for each set, the first on top."""
    for row, result in enumerate(sets):
        metric = result.overall.metrics[name]
        if not math.isfinite(metric.value):
            text = "infinite" if math.isinf(metric.value) else "not measurable"
            axis.text(
                0.03, row, text, transform=axis.get_yaxis_transform(), va="center", color="0.4"
            )
            continue
        if origin is not None:
            axis.barh(row, metric.value - origin, left=origin, height=0.6, color=_color(row))
        axis.errorbar(
            metric.value,
            row,
            xerr=_errors(metric),
            fmt=MARKERS[row % len(MARKERS)] if origin is None else ".",  # a bar of 0 shows, too
            color=_color(row) if origin is None else "black",
            capsize=4,
        )
    if origin is not None:
        axis.axvline(origin, color="0.3", linewidth=1)
    axis.set_yticks(range(len(sets)), [_wrapped(result.name) for result in sets])
    axis.set_ylim(len(sets) - 0.4, -0.6)
    axis.locator_params(axis="x", nbins=5)
    axis.margins(x=0.1)
    if name.endswith("balanced_accuracy"):
        axis.set_xlim(0, 1.03)
    axis.grid(axis="x", alpha=0.3)


def _scatter(axis: Axes, sets: tuple[SetResult, ...]) -> None:
    """SSIM against banding: what was removed, and at what cost."""
    for row, result in enumerate(sets):
        banding = result.overall.metrics["low_signal.contribution"]
        ssim = result.overall.metrics["ssim"]
        if math.isfinite(banding.value) and math.isfinite(ssim.value):
            axis.errorbar(
                banding.value,
                ssim.value,
                xerr=_errors(banding),
                yerr=_errors(ssim),
                fmt=MARKERS[row % len(MARKERS)],
                color=_color(row),
                capsize=3,
                label=_wrapped(result.name),
            )
    axis.set_title("SSIM against banding B (best: top, at 0)", fontsize=11)
    axis.set_xlabel("B, dB")
    axis.axvline(0, color="0.3", linewidth=1)
    axis.locator_params(nbins=5)
    axis.margins(0.1)
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        # beside the panel, where it hides nothing
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)


def _errors(metric: Metric) -> Any:
    """Distances to the ends of the interval, (2, 1); None where there is none."""
    if math.isnan(metric.low):
        return None
    return [[max(0.0, metric.value - metric.low)], [max(0.0, metric.high - metric.value)]]


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(name, NAME_WIDTH)) or name


def _color(row: int) -> str:
    return f"C{row % 10}"
