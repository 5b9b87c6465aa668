"""Image files as fastMRI has them: targets, and reconstructions by any software.

A reconstruction is one HDF5 file per volume, named like the volume, with a real dataset
`reconstruction` [slice, h, w].
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from banding_removal.data.hdf5 import READ_ERRORS, check_stored, open_file, own_dataset
from banding_removal.data.volume import Volume, VolumeError

KEY = "reconstruction"


def read_targets(file: Volume) -> NDArray[np.float32]:
    """All targets of a volume, float32 [slice, h, w].

    Raises:
        VolumeError: they cannot be read, or are not finite.
    """
    try:
        with open_file(file.path) as content:
            stored = own_dataset(content, str(file.target_key))
            targets: NDArray[np.float32] = stored[()].astype(np.float32)
            targets = targets.reshape(-1, *stored.shape[-2:])
    except READ_ERRORS as error:
        raise VolumeError(f"{file.path}: target: {error}") from error
    if not np.isfinite(targets).all():
        raise VolumeError(f"{file.path}: target has NaN or Inf")
    return targets


def slice_of_file(path: Path, index: int) -> Tensor:
    """One slice of a reconstruction, float32 (h, w).

    Raises:
        VolumeError: it cannot be read, or is not finite.
    """
    try:
        with open_file(path) as file:
            image = own_dataset(file, KEY)[index].astype(np.float32)
            image = image.reshape(image.shape[-2:])
    except READ_ERRORS as error:
        raise VolumeError(f"{path}: slice {index}: {error}") from error
    if not np.isfinite(image).all():
        raise VolumeError(f"{path}: {KEY} of slice {index} has NaN or Inf")
    return torch.from_numpy(image)


def shape_of_file(path: Path) -> tuple[int, ...]:
    """Shape of a reconstruction, [slice, h, w], also of one with a channel, [slice, 1, h, w].

    Raises:
        VolumeError: the file is missing, or not in the format.
    """
    if not path.exists():
        raise VolumeError(f"{path}: is missing")
    try:
        with open_file(path) as file:
            found = own_dataset(file, KEY)
            images = found.ndim == 3 or (found.ndim == 4 and found.shape[1] == 1)
            if not images or found.dtype.kind not in "fiu":
                raise ValueError(
                    f"{KEY} is {found.dtype} {found.shape}; expected real [slice, h, w]"
                )
            check_stored(found)
            height, width = found.shape[-2:]
            return int(found.shape[0]), int(height), int(width)
    except READ_ERRORS as error:
        raise VolumeError(f"{path}: {error}") from error


def check_files(volumes: Sequence[Volume], folders: Sequence[Path]) -> list[str]:
    """What is wrong with the reconstructions of `volumes` in `folders`, a line each.

    Each folder must hold a file for each volume, with the volume's number of slices. The images of
    a volume must have the same size in all folders.
    """
    problems = []
    for volume in volumes:
        shapes: dict[Path, tuple[int, ...]] = {}
        for path in [folder / volume.name for folder in folders]:
            try:
                shapes[path] = shape_of_file(path)
            except VolumeError as error:
                problems.append(str(error))
                continue
            if shapes[path][0] != volume.slices:
                problems.append(
                    f"{path}: {KEY} is {shapes[path]}, but the target of {volume.name} is "
                    f"{(volume.slices, *(volume.target_size or ()))}: the numbers of slices differ"
                )
        if len({shape[1:] for shape in shapes.values()}) > 1:
            both = ", ".join(f"{path}: {shape}" for path, shape in shapes.items())
            problems.append(f"{both}: shapes differ (both must be upright)")
    return problems
