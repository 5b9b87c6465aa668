"""A page of pictures: rows of titled pictures with captions, and a table below them, as PNG.

Pictures are enlarged by whole factors: pixel by pixel, or, for print, with interpolation.
"""

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from banding_removal.files import atomic_write
from banding_removal.metrics.low_signal_view import low_signal_view

GAP = 6  # pixels between pictures
FONT_SIZE = 13
LINE_HEIGHT = 17
MIN_WIDTH = 480  # of a page
MIN_SIDE = 240  # the longer side of a picture is enlarged to at least this many pixels
MOST_TEXTURE = 3.0  # black and white of a texture, in local noise levels
PAPER, INK = 255, 0
Pixels = NDArray[np.uint8]


class Row(NamedTuple):
    """Pictures (h, w) side by side, by title, and the caption below them."""

    pictures: dict[str, Pixels]
    caption: str = ""
    smooth: bool = False  # enlarged with interpolation


def write_page(
    path: Path,
    rows: Sequence[Row],
    header: Sequence[str],
    table: Sequence[Sequence[str]] = (),
) -> None:
    """Write rows of pictures below a header, whole or not at all; the folder is made if missing.

    Titles are repeated only where they change. Long header lines and captions are wrapped. The
    table stands below the pictures; its first row is its head.

    Raises:
        OSError: the file cannot be written; nothing is left behind.
    """
    buffer = io.BytesIO()
    _page(rows, header, table).save(buffer, format="PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, buffer.getvalue())


def grey(image: Tensor, low: float, scale: float) -> Pixels:
    """Grey values of a real image (h, w) on the CPU: black at `low`, white at `low + scale`."""
    scaled = ((image - low) / scale).clamp(0, 1)
    return (255 * scaled).round().to(torch.uint8).numpy()


def texture(image: Tensor) -> Pixels:
    """The low-signal view of an image (h, w) on the CPU: streaks show at the same contrast."""
    return grey(low_signal_view(image[None, None])[0, 0], -MOST_TEXTURE, 2 * MOST_TEXTURE)


def colour_bar(low: str, middle: str, high: str, column: Pixels) -> Pixels:
    """A grey scale from black, at the bottom, to white, with labels.

    It is as large as the picture `column` on the page, so that rows above and below are aligned.
    """
    side, page_width = _enlarged(column, smooth=False).shape
    bar = Image.new("L", (page_width, side), PAPER)
    draw = ImageDraw.Draw(bar)
    font = _font()
    top, bottom, width = LINE_HEIGHT, side - LINE_HEIGHT, page_width // 8
    for y in range(top, bottom):
        draw.line((0, y, width, y), fill=round(255 * (bottom - 1 - y) / (bottom - 1 - top)))
    draw.rectangle((0, top, width, bottom - 1), outline=INK)
    for text, y in ((high, top), (middle, (top + bottom) // 2), (low, bottom)):
        draw.text((width + GAP, y - LINE_HEIGHT // 2), text, fill=INK, font=font)
    return np.asarray(bar)


def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(f"{mpl.get_data_path()}/fonts/ttf/DejaVuSans.ttf", FONT_SIZE)


def _page(
    rows: Sequence[Row], header: Sequence[str], table: Sequence[Sequence[str]]
) -> Image.Image:
    font = _font()
    rows = [
        row._replace(pictures={t: _enlarged(p, row.smooth) for t, p in row.pictures.items()})
        for row in rows
    ]
    widths = [sum(width + GAP for width in _columns(font, row)) + GAP for row in rows]
    cells = [
        max(_text_width(font, text) for text in column) + 3 * GAP
        for column in zip(*table, strict=True)
    ]
    page_width = max([MIN_WIDTH, *widths, sum(cells) + GAP])
    placed: list[tuple[int, int, str | Pixels]] = []  # left, top, what
    y = GAP

    def place_lines(text: str) -> None:
        nonlocal y
        for line in _wrapped(font, text, page_width - 2 * GAP):
            placed.append((GAP, y, line))
            y += LINE_HEIGHT

    def place_side_by_side(row: Row, items: Sequence[str | Pixels]) -> None:
        x = GAP
        for item, width in zip(items, _columns(font, row), strict=True):
            placed.append((x, y, item))
            x += width + GAP

    for text in header:
        place_lines(text)
    y += GAP
    titles: list[str] = []
    for row in rows:
        if list(row.pictures) != titles:
            titles = list(row.pictures)
            place_side_by_side(row, titles)
            y += LINE_HEIGHT
        place_side_by_side(row, list(row.pictures.values()))
        y += max(len(picture) for picture in row.pictures.values()) + 2
        if row.caption:
            place_lines(row.caption)
        y += GAP
    for line in table:
        for i, text in enumerate(line):
            placed.append((GAP + sum(cells[:i]), y, text))
        y += LINE_HEIGHT

    page = Image.new("L", (page_width, y + GAP), PAPER)
    draw = ImageDraw.Draw(page)
    for left, top, item in placed:
        if isinstance(item, str):
            draw.text((left, top), item, fill=INK, font=font)
        else:
            page.paste(Image.fromarray(item), (left, top))
    return page


def _columns(font: ImageFont.FreeTypeFont, row: Row) -> list[int]:
    """Widths of a row's columns: a column is at least as wide as its title."""
    return [
        max(picture.shape[1], _text_width(font, title)) for title, picture in row.pictures.items()
    ]


def _enlarged(picture: Pixels, smooth: bool) -> Pixels:
    factor = max(1, math.ceil(MIN_SIDE / max(picture.shape)))
    if smooth and factor > 1:
        height, width = picture.shape
        larger = Image.fromarray(picture).resize(
            (factor * width, factor * height), Image.Resampling.BICUBIC
        )
        return np.asarray(larger)
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _text_width(font: ImageFont.FreeTypeFont, text: str) -> int:
    return math.ceil(font.getlength(text))


def _wrapped(font: ImageFont.FreeTypeFont, text: str, width: int) -> list[str]:
    """Lines of `text` of at most `width` pixels."""
    characters = max(20, int(width / font.getlength("n")))
    lines = textwrap.wrap(text, characters) or [""]
    while characters > 10 and any(_text_width(font, line) > width for line in lines):
        characters -= 2
        lines = textwrap.wrap(text, characters)
    return lines
