"""A page of validation slices, one per row."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from banding_removal.metrics.banding import BandingOfSlice
from banding_removal.metrics.image_quality import Quality
from banding_removal.metrics.slice_pair import SlicePair
from banding_removal.pictures.page import Pixels, Row, grey, write_page
from banding_removal.pictures.zoom import low_signal_part


@dataclass(frozen=True, kw_only=True)
class ValidatedSlice:
    """A slice with its metrics; images are on the CPU."""

    pair: SlicePair
    zero_filled: Tensor  # of the target's size
    quality: Quality  # of the image along x
    banding: BandingOfSlice | None  # None if there is no image along y


def write_validation_grid(
    path: Path,
    slices: Sequence[ValidatedSlice],
    *,
    header: Sequence[str],
    zero_filled: bool,
    window: float | None,
) -> None:
    """Write target | reconstruction | error for each slice, and its metrics below.

    The pictures of a row are scaled by the target's minimum and maximum. The error is
    0.5 + 4 |difference| / (maximum - minimum): middle grey means no error.

    Args:
        path: of the PNG; it is written whole or not at all.
        slices: what to show, one per row.
        header: lines above the pictures; long ones are wrapped.
        zero_filled: add the zero-filled input after the target.
        window: add enlargements of a low-signal part of the slice: of the target, and of the
            reconstructions along x and along y, whose streaks lie along x and along y. White is
            this fraction of the volume's largest target value. None: add nothing.
    """
    rows = [Row(_pictures(item, zero_filled, window), _caption(item)) for item in slices]
    write_page(path, rows, header)


def banding_caption(banding: BandingOfSlice | None) -> str:
    """B and signed excess of a slice, or why they cannot be measured."""
    if banding is None:
        return "banding not measurable: one orientation only"
    region = banding.low_signal
    if region.reason:
        return f"banding not measurable: {region.reason}"
    return f"banding {region.contribution:.2f} dB   signed excess {region.signed_excess:.2f} %"


def _pictures(item: ValidatedSlice, zero_filled: bool, window: float | None) -> dict[str, Pixels]:
    pair = item.pair
    low, high = float(pair.target.min()), float(pair.target.max())
    scale = high - low if high > low else 1.0
    error = 0.5 + 4 * (pair.along_x - pair.target).abs() / scale
    pictures = {"target": grey(pair.target, low, scale)}
    if zero_filled:
        pictures["zero-filled"] = grey(item.zero_filled, low, scale)
    pictures["reconstruction"] = grey(pair.along_x, low, scale)
    pictures["error x 4"] = grey(error, 0, 1)
    if window is not None:
        part = low_signal_part(pair.target, pair.scale)
        # The same white for all slices of a volume: an empty slice stays dark.
        white = pair.data_range * window
        pictures["target, zoom"] = grey(pair.target[part], 0, white)
        pictures["reconstruction, zoom"] = grey(pair.along_x[part], 0, white)
        if pair.along_y is not None:
            pictures["phase encode along y, zoom"] = grey(pair.along_y[part], 0, white)
    return pictures


def _caption(item: ValidatedSlice) -> str:
    pair, quality = item.pair, item.quality
    nmse = "n/a" if math.isnan(quality.nmse) else f"{quality.nmse:.4f}"
    return (
        f"{pair.name} slice {pair.slice_index} {pair.acquisition}   "
        f"NMSE {nmse}   SSIM {quality.ssim:.4f}   MSE {quality.mse:.3g}   "
        f"{banding_caption(item.banding)}"
    )
