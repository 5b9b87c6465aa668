"""The images of a study as 16-bit integers: all sets of a case on one scale."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from banding_removal.data.operators import center_crop
from banding_removal.errors import ConfigError
from banding_removal.evaluation.image_sets import ImageSet
from banding_removal.evaluation.measure import SCALE_TOLERANCE, cropped
from banding_removal.reader_study.cases import Case

WHITEST = 65535


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseImages:
    """A case of all sets, in the order of the sets."""

    images: NDArray[np.uint16]  # (set, h, w)
    white: int  # grey value of q, the 99.5th percentile of the volume's target; may be > 65535


def read_cases(sets: Sequence[ImageSet], cases: Sequence[Case]) -> list[CaseImages]:
    """The images of all cases, cropped to the smallest size and scaled by their common maximum.

    Args:
        sets: that yield the slices of the cases.
        cases: each slice once.

    Raises:
        ConfigError: images of an orientation are missing, or a set is in another unit than the
            targets, by which readers would recognise it.
        FloatingPointError: an image is not finite.
        VolumeError: an image cannot be read.
    """
    found: list[list[Tensor]] = [[] for _ in cases]
    scales = [0.0] * len(cases)
    number_of = {case.place: number for number, case in enumerate(cases)}
    for image_set in sets:
        products, energy = 0.0, 0.0
        bar = {"desc": image_set.name, "total": len(cases), "leave": False, "mininterval": 1}
        for pair in tqdm(image_set.slices, **bar):
            number = number_of[(pair.name, pair.slice_index)]
            images = cropped(pair, image_set.name)
            image = images.along_x
            if cases[number].orientation == "y":
                if images.along_y is None:
                    raise ConfigError(
                        f"set {image_set.name!r}: {pair.name} has phase encoding along x only "
                        f"({images.why_no_along_y}): use orientations=x"
                    )
                image = images.along_y
            products += float((image * images.target).sum())
            energy += float(image.square().sum())
            found[number].append(image)
            scales[number] = pair.scale
        _check_unit(image_set.name, products, energy)
    return [_on_one_scale(*both) for both in zip(found, scales, strict=True)]


def _check_unit(name: str, products: float, energy: float) -> None:
    factor = products / energy if energy else 0.0
    if not 1 / SCALE_TOLERANCE <= factor <= SCALE_TOLERANCE:
        raise ConfigError(
            f"set {name!r} is in another unit than the targets, by which readers would recognise "
            f"it: multiply its images by {factor:.4g}"
        )


def _on_one_scale(images: Sequence[Tensor], scale: float) -> CaseImages:
    size = (min(len(image) for image in images), min(image.shape[1] for image in images))
    stack = torch.stack([center_crop(image, size) for image in images]).double().clamp(min=0)
    largest = float(stack.max()) or scale
    grey = (stack * (WHITEST / largest)).round().numpy().astype("<u2")
    return CaseImages(images=grey, white=max(1, round(WHITEST * scale / largest)))
