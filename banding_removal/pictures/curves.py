"""Training curves as one PNG."""

import io
import math
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from banding_removal.files import atomic_write

Panels = tuple[tuple[str, tuple[str, ...]], ...]  # title, keys of the history

PANELS: Panels = (
    ("loss", ("train_loss", "val_loss")),
    ("SSIM", ("train_ssim", "val_ssim")),
    ("NMSE", ("val_nmse",)),
    ("PSNR (dB)", ("val_psnr",)),
    ("learning rate", ("lr", "adversary_lr")),
    ("ms per step", ("step_ms", "wait_ms")),
    ("banding (dB)", ("val_banding",)),
    ("banding, signed excess (% of q)", ("val_banding_signed_excess",)),
    ("streaks over the target's (dB)", ("val_banding_along", "val_banding_across")),
    ("streak term", ("streaks",)),
    ("orientation loss", ("predictor_orientation", "adversary_orientation")),
    ("adversary's accuracy", ("accuracy",)),
    ("adversary's penalty and bias", ("penalty", "bias")),
)
# Of single steps, with the keys of metrics.jsonl.
STEP_PANELS: Panels = (
    ("loss of single steps", ("loss",)),
    ("SSIM of single steps", ("ssim",)),
    ("orientation loss of single steps", ("predictor_orientation", "adversary_orientation")),
    ("adversary's accuracy, running mean", ("accuracy_running",)),
    ("gradient norm of single steps", ("grad_norm", "adversary_grad_norm")),
)
COLUMNS = 3


def panels_with_values(panels: Panels, known: Set[str]) -> Panels:
    """The panels of which at least one key is known."""
    return tuple(panel for panel in panels if not known.isdisjoint(panel[1]))


def write_curves(path: Path, history: Sequence[dict[str, Any]], title: str) -> None:
    """Plot the history, a panel for each group that has values; written whole or not at all.

    Args:
        path: of the PNG.
        history: a row per epoch, with its number at "epoch"; missing metrics leave gaps.
        title: above the panels.
    """
    known = {key for row in history for key in row}
    panels = panels_with_values(PANELS, known)
    rows = math.ceil(len(panels) / COLUMNS)
    figure = Figure(figsize=(13, 3.25 * rows), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for place, (name, keys) in enumerate(panels, start=1):
        axis = figure.add_subplot(rows, COLUMNS, place)
        shown = [key for key in keys if key in known]
        for key in shown:
            values = [row.get(key, float("nan")) for row in history]
            axis.plot(epochs, values, marker="o", markersize=3, label=key)
        axis.set_title(name)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.locator_params(axis="x", integer=True)
        if len(shown) > 1:
            axis.legend()
        if name == "learning rate":
            axis.set_yscale("log")
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    atomic_write(path, buffer.getvalue())
