"""A page of a few slices of a reconstructed volume."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from banding_removal.pictures.page import Pixels, Row, grey, write_page
from banding_removal.reconstruction.files import cannot_write
from banding_removal.reconstruction.volume import SliceImage

PREVIEW_SLICES = 4


def write_preview(
    path: Path, slices: Sequence[SliceImage], *, header: Sequence[str], window: float
) -> None:
    """Write target (if there is one) | reconstruction | both again, low signal, of a few slices.

    The first pictures are scaled by the slice's maximum, of the target if there is one. White of
    the low-signal pictures is `window` times the maximum over all slices.

    Raises:
        OSError: the file cannot be written; nothing is left behind.
    """
    references = [item.image if item.target is None else item.target for item in slices]
    white = window * max(float(image.max()) for image in references) or 1.0
    rows: list[Row] = []
    for index in np.linspace(0, len(slices) - 1, PREVIEW_SLICES + 1)[:PREVIEW_SLICES].round():
        item, scale = slices[int(index)], float(references[int(index)].max()) or 1.0
        images = {"reconstruction": item.image}
        if item.target is not None:
            images = {"target": item.target, **images}
        pictures: dict[str, Pixels] = {
            **{title: grey(image, 0, scale) for title, image in images.items()},
            **{f"{title}, low signal": grey(image, 0, white) for title, image in images.items()},
        }
        caption = (
            f"slice {item.slice_index}: {item.measured_columns} of {item.columns} phase-encode "
            f"columns measured (1 in {item.columns / max(item.measured_columns, 1):.2f}), "
            f"{item.acs_lines} of them the centre"
        )
        rows.append(Row(pictures, caption))
    try:
        write_page(path, rows, header)
    except OSError as error:
        raise cannot_write(path, error) from error
