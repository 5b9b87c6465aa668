"""Picture grids: fixed validation slices, one a row, and the raw input of one example."""

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from banding_removal.data.batch import Batch
from banding_removal.data.operators import center_crop, rss, to_image
from banding_removal.files import atomic_write
from banding_removal.metrics.banding import BandingOfSlice
from banding_removal.metrics.image_quality import Quality
from banding_removal.metrics.low_signal import low_signal_regions

GAP = 6  # pixels between pictures
TEXT = 13  # font size
LINE = 17  # height of a line of text
SMALLEST = 240  # pictures are enlarged by a whole factor to at least this many pixels
ZOOMED_PART = 0.4  # of height and width
BACKGROUND, INK = 255, 0
Pixels = NDArray[np.uint8]
Row = tuple[dict[str, Pixels], str]  # titled pictures side by side, and the caption below them


@dataclass(frozen=True, kw_only=True)
class DisplaySlice:
    """A validation slice: images (h, w), for the grid on the CPU, and its figures."""

    name: str
    slice_index: int
    acquisition: str
    target: Tensor
    reconstruction: Tensor
    zero_filled: Tensor
    data_range: float  # largest target value of the volume
    scale: float  # the unit of banding, the 99.5th percentile of the volume's targets
    quality: Quality
    other: Tensor | None = None  # reconstruction from phase encoding along y, upright
    banding: BandingOfSlice | None = None

    def to(self, device: torch.device) -> "DisplaySlice":
        """The slice with its images on `device`."""
        images: dict[str, Any] = {
            key: value.to(device) for key, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **images)


def write_grid(
    path: Path,
    slices: Sequence[DisplaySlice],
    *,
    header: Sequence[str],
    zero_filled: bool,
    window: float | None,
) -> None:
    """Write a grid: target | reconstruction | error for each slice, its figures below.

    All pictures of a row are scaled by the target's minimum and maximum; the error is
    0.5 + 4 |difference| / (maximum - minimum), so that middle grey is none.

    Args:
        path: of the PNG; written whole or not at all.
        slices: what to show.
        header: lines above the pictures; long ones are wrapped.
        zero_filled: add the zero-filled input after the target.
        window: if given, add a low-signal part of the slice, enlarged, with white at this part of
            the volume's largest target value: the target, and the reconstructions with phase
            encoding along x and along y, whose streaks lie along x and along y.
    """
    rows: list[Row] = []
    for item in slices:
        low, high = float(item.target.min()), float(item.target.max())
        scale = high - low if high > low else 1.0
        error = 0.5 + 4 * (item.reconstruction - item.target).abs() / scale
        pictures = {"target": grey(item.target, low, scale)}
        if zero_filled:
            pictures["zero-filled"] = grey(item.zero_filled, low, scale)
        pictures["reconstruction"] = grey(item.reconstruction, low, scale)
        pictures["error x 4"] = grey(error, 0, 1)
        if window is not None:
            part = low_signal_part(item.target, item.scale)
            # One scale for all slices of a volume: an empty slice stays as dark as it is.
            white = item.data_range * window
            zooms = {"target, zoom": item.target, "reconstruction, zoom": item.reconstruction}
            if item.other is not None:
                zooms["phase encode along y, zoom"] = item.other
            for title, image in zooms.items():
                pictures[title] = grey(image[part], 0, white)
        q = item.quality
        caption = (
            f"{item.name} slice {item.slice_index} {item.acquisition}   "
            f"NMSE {_number(q.nmse, '.4f')}   SSIM {q.ssim:.4f}   MSE {q.mse:.3g}   "
            f"{banding_caption(item.banding)}"
        )
        rows.append((pictures, caption))
    write_page(path, rows, header)


def low_signal_part(target: Tensor, scale: float, part: float = ZOOMED_PART) -> tuple[slice, slice]:
    """Rows and columns of the part of a target (h, w) with the most low-signal anatomy.

    Where there is none, with the most low-signal pixels.

    Args:
        target: real (h, w).
        scale: q of its volume.
        part: of height and of width.
    """
    size = [max(1, round(part * length)) for length in target.shape]
    regions = low_signal_regions(target, scale)
    # Dark tissue shows more than the background does, however large that is.
    weight = regions.low_signal.double() + 1000 * regions.anatomy.double()
    counts = F.avg_pool2d(weight[None, None], size, stride=1)[0, 0]
    top, left = divmod(int(counts.argmax()), counts.shape[1])
    return slice(top, top + size[0]), slice(left, left + size[1])


def banding_caption(banding: BandingOfSlice | None) -> str:
    """The figures of a slice's banding in words."""
    if banding is None:
        return "banding not measurable: one orientation only"
    region = banding.low_signal
    if region.reason:
        return f"banding not measurable: {region.reason}"
    return f"banding {region.contribution:.2f} dB   excess {region.signed_excess:.2f} %"


def write_raw_grid(path: Path, batch: Batch) -> None:
    """Write what one example looks like before the network: k-space, mask, images, coils.

    The first row is log |k-space| of the first coil as measured, the zero-filled RSS and the
    target (where there is one); the following rows are the magnitudes of the coil images.
    """
    kspace, target = batch.masked_kspace[0].cpu(), batch.target
    coil_images = to_image(kspace)
    zero_filled = rss(coil_images)[0]
    first = {
        "log |masked k-space|, coil 0": _fit(_log_magnitude(kspace[0])),
        "zero-filled RSS": _fit(zero_filled),
    }
    if target is not None:
        size = (
            min(target.shape[-2], zero_filled.shape[-2]),
            min(target.shape[-1], zero_filled.shape[-1]),
        )
        first["zero-filled RSS, cropped"] = _fit(center_crop(zero_filled, size))
        first["target"] = _fit(target[0, 0].cpu())
    measured = int(batch.mask[0].sum())
    width = batch.mask.shape[-1]
    caption = (
        f"{batch.describe()}: {measured} of {width} phase-encode columns measured "
        f"(1 in {width / max(measured, 1):.2f}), {int(batch.acs_lines[0])} of them the centre"
    )
    rows: list[Row] = [(first, caption)]
    magnitudes = [_fit(image) for image in coil_images.abs()]
    for start in range(0, len(magnitudes), 4):
        group = magnitudes[start : start + 4]
        rows.append(({f"coil {start + i}": image for i, image in enumerate(group)}, ""))
    write_page(path, rows, ["Raw input of one training example: H is readout, W phase encode."])


def grey(image: Tensor, low: float, scale: float) -> Pixels:
    """Grey values of an image (h, w): black at `low`, white at `low + scale`."""
    scaled = ((image - low) / scale).clamp(0, 1)
    return (255 * scaled).round().to(torch.uint8).numpy()


def _fit(image: Tensor) -> Pixels:
    """Grey values from the image's own minimum to its 99.8th percentile."""
    low = float(image.min())
    high = float(np.percentile(image.numpy(), 99.8))
    return grey(image, low, high - low if high > low else 1.0)


def _log_magnitude(kspace: Tensor) -> Tensor:
    """log10 |k| over five decades below the largest value; what was not measured is darkest."""
    magnitude = kspace.abs()
    peak = float(magnitude.max())
    floor = peak * 1e-5 if peak > 0 else 1.0
    return magnitude.clamp(min=floor).log10()


def _number(value: float, form: str) -> str:
    return "n/a" if math.isnan(value) else format(value, form)


def write_page(path: Path, rows: Sequence[Row], header: Sequence[str]) -> None:
    """Write titled pictures in rows, a caption below each and a header on top, as PNG.

    The file is written whole or not at all; its folder is made if missing.
    """
    buffer = io.BytesIO()
    _page(rows, header).save(buffer, format="PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, buffer.getvalue())


def _page(rows: Sequence[Row], header: Sequence[str]) -> Image.Image:
    """The page as a picture.

    Every picture is enlarged by a whole factor, so that no pixel is smoothed; texts are wrapped
    to the width there is, and rows are as high as their texts need.
    """
    font = ImageFont.truetype(f"{mpl.get_data_path()}/fonts/ttf/DejaVuSans.ttf", TEXT)
    laid_out, width = [], 480
    for pictures, caption in rows:
        shown = {title: _enlarge(picture) for title, picture in pictures.items()}
        # A column is never narrower than its title.
        columns = [max(p.shape[1], _text_width(font, t)) for t, p in shown.items()]
        laid_out.append((shown, columns, caption))
        width = max(width, sum(columns) + GAP * (len(columns) + 1))

    canvas_parts: list[tuple[int, int, str | Pixels]] = []
    y = GAP
    for line in header:
        for piece in _wrap(font, line, width - 2 * GAP):
            canvas_parts.append((GAP, y, piece))
            y += LINE
    y += GAP
    titles: list[str] = []
    for shown, columns, caption in laid_out:
        if list(shown) != titles:
            titles = list(shown)
            x = GAP
            for title, column in zip(shown, columns, strict=True):
                canvas_parts.append((x, y, title))
                x += column + GAP
            y += LINE
        x = GAP
        for picture, column in zip(shown.values(), columns, strict=True):
            canvas_parts.append((x, y, picture))
            x += column + GAP
        y += max(picture.shape[0] for picture in shown.values()) + 2
        for piece in _wrap(font, caption, width - 2 * GAP) if caption else []:
            canvas_parts.append((GAP, y, piece))
            y += LINE
        y += GAP

    page = Image.new("L", (width, y + GAP), BACKGROUND)
    draw = ImageDraw.Draw(page)
    for x, top, part in canvas_parts:
        if isinstance(part, str):
            draw.text((x, top), part, fill=INK, font=font)
        else:
            page.paste(Image.fromarray(part), (x, top))
    return page


def _enlarge(picture: Pixels) -> Pixels:
    factor = max(1, math.ceil(SMALLEST / max(picture.shape)))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _text_width(font: ImageFont.FreeTypeFont, text: str) -> int:
    return math.ceil(font.getlength(text))


def _wrap(font: ImageFont.FreeTypeFont, text: str, width: int) -> list[str]:
    """Lines of `text` no wider than `width` pixels."""
    characters = max(20, int(width / font.getlength("n")))
    pieces = textwrap.wrap(text, characters) or [""]
    while characters > 10 and any(_text_width(font, piece) > width for piece in pieces):
        characters -= 2
        pieces = textwrap.wrap(text, characters)
    return pieces
