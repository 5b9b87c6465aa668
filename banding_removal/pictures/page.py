"""A page of pictures: rows of titled pictures with captions, as PNG.

No pixel is smoothed: pictures are enlarged by whole factors.
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

GAP = 6  # pixels between pictures
FONT_SIZE = 13
LINE_HEIGHT = 17
MIN_WIDTH = 480  # of a page
MIN_SIDE = 240  # the longer side of a picture is enlarged to at least this many pixels
PAPER, INK = 255, 0
Pixels = NDArray[np.uint8]


class Row(NamedTuple):
    """Pictures (h, w) side by side, by title, and the caption below them."""

    pictures: dict[str, Pixels]
    caption: str = ""


def write_page(path: Path, rows: Sequence[Row], header: Sequence[str]) -> None:
    """Write rows of pictures below a header, whole or not at all; the folder is made if missing.

    Titles are repeated only where they change. Long header lines and captions are wrapped.

    Raises:
        OSError: the file cannot be written; nothing is left behind.
    """
    buffer = io.BytesIO()
    _page(rows, header).save(buffer, format="PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, buffer.getvalue())


def grey(image: Tensor, low: float, scale: float) -> Pixels:
    """Grey values of a real image (h, w) on the CPU: black at `low`, white at `low + scale`."""
    scaled = ((image - low) / scale).clamp(0, 1)
    return (255 * scaled).round().to(torch.uint8).numpy()


def _page(rows: Sequence[Row], header: Sequence[str]) -> Image.Image:
    font = ImageFont.truetype(f"{mpl.get_data_path()}/fonts/ttf/DejaVuSans.ttf", FONT_SIZE)
    rows = [
        Row({title: _enlarged(picture) for title, picture in row.pictures.items()}, row.caption)
        for row in rows
    ]
    widths = [sum(width + GAP for width in _columns(font, row)) + GAP for row in rows]
    page_width = max([MIN_WIDTH, *widths])
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


def _enlarged(picture: Pixels) -> Pixels:
    factor = max(1, math.ceil(MIN_SIDE / max(picture.shape)))
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
