"""A page that shows one training example before it reaches the network."""

from pathlib import Path

import numpy as np
from torch import Tensor

from banding_removal.data.batch import Batch
from banding_removal.data.operators import crop_to_smaller, rss, to_image
from banding_removal.pictures.page import Pixels, Row, grey, write_page

COILS_PER_ROW = 4


def write_input_grid(path: Path, batch: Batch) -> None:
    """Write the k-space, zero-filled image, target and coil images of a batch's first example.

    The first row is log |k-space| of the first coil as measured, the zero-filled RSS image and the
    target, if there is one. The other rows are the magnitudes of the zero-filled coil images.
    """
    kspace = batch.masked_kspace[0].cpu()
    coil_images = to_image(kspace)
    zero_filled = rss(coil_images)[0]
    first = {
        "log |masked k-space|, coil 0": _fit(_log_magnitude(kspace[0])),
        "zero-filled RSS": _fit(zero_filled),
    }
    if batch.target is not None:
        target = batch.target[0, 0].cpu()
        first["zero-filled RSS, cropped"] = _fit(crop_to_smaller(zero_filled, target)[0])
        first["target"] = _fit(target)
    measured, width = int(batch.mask[0].sum()), batch.mask.shape[-1]
    caption = (
        f"{batch.describe()}: {measured} of {width} phase-encode columns measured "
        f"(1 in {width / max(measured, 1):.2f}), {int(batch.acs_lines[0])} of them the centre"
    )
    coils = [(f"coil {i}", _fit(image)) for i, image in enumerate(coil_images.abs())]
    rows = [
        Row(dict(coils[start : start + COILS_PER_ROW]))
        for start in range(0, len(coils), COILS_PER_ROW)
    ]
    header = ["Raw input of one training example: H is readout, W phase encode."]
    write_page(path, [Row(first, caption), *rows], header)


def _fit(image: Tensor) -> Pixels:
    """Grey values from the image's minimum (black) to its 99.8th percentile (white)."""
    low = float(image.min())
    high = float(np.percentile(image.numpy(), 99.8))
    return grey(image, low, high - low if high > low else 1.0)


def _log_magnitude(kspace: Tensor) -> Tensor:
    """log10 |k| over five decades below the largest value; unmeasured columns are black."""
    magnitude = kspace.abs()
    peak = float(magnitude.max())
    floor = peak * 1e-5 if peak > 0 else 1.0
    return magnitude.clamp(min=floor).log10()
