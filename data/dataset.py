"""Slices of volumes as training examples: read, perhaps transpose, mask.

`h5 slice -> (transpose?) -> mask -> Example -> Batch -> device -> masked k-space`
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from banding_removal.data.batch import Example
from banding_removal.data.handle_cache import HandleCache
from banding_removal.data.hdf5 import READ_ERRORS, own_dataset
from banding_removal.data.masks import (
    Mask,
    MaskSampler,
    acquired_columns,
    seeded_by_draw,
    seeded_by_name,
)
from banding_removal.data.stored_mask import lacks_columns
from banding_removal.data.volume import Volume, VolumeError

NO_CENTRE = (
    "the scanner did not measure the centre of k-space, from which sensitivity maps are estimated"
)
REMEDY = "replace or remove the file and run the same command again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Which slice in which epoch: the key of a `SliceDataset`."""

    epoch: int
    index: int
    rotated: bool | None = None  # whether to transpose; None: the data set draws it


class SliceDataset(Dataset[Example]):
    """Every slice of the given volumes, keyed by `Draw(epoch, index)` or by index (epoch 0).

    All draws are functions of (seed, epoch, file name, slice): the same for any number of workers
    and processes, and after a resume. A volume that the scanner undersampled keeps its own mask and
    is never transposed.

    Args:
        volumes: from `index_folder`, filtered.
        masks: draws the masks of fully sampled volumes.
        seed: of all draws.
        rotate_probability: probability of transposing a slice before it is masked; 1/2 in
            training, 0 in validation.
        redraw_masks: True: a new mask for each (epoch, slice); False: one mask for each volume,
            seeded by its name.
        offsets_from_data: True: the acquired columns are those that are not zero in k-space, and
            the mask's lines start at the first of them (as in the paper's runs); False: the header
            gives the columns, and the start is drawn.
        slice_range: slices [first, stop) of each volume; None: no limit.
        require_target: refuse volumes without a target.

    Raises:
        VolumeError: volumes lack a target or the acquired columns, where these are needed, or were
            undersampled without a line at the centre of k-space.
        ValueError: no slice is left.
    """

    def __init__(
        self,
        volumes: Sequence[Volume],
        masks: MaskSampler,
        *,
        seed: int,
        rotate_probability: float = 0.0,
        redraw_masks: bool = False,
        offsets_from_data: bool = True,
        slice_range: tuple[int | None, int | None] = (None, None),
        require_target: bool = True,
    ) -> None:
        problems = []
        if require_target:
            problems += [f"{v.path}: has no target image" for v in volumes if v.target_key is None]
        if not offsets_from_data:
            problems += [
                f"{v.path}: neither its header nor attributes padding_left and padding_right give "
                "acquired phase-encode columns within k-space; offsets_from_data=true finds them"
                for v in volumes
                if v.acquired is None and v.measured is None
            ]
        problems += [
            f"{v.path}: {NO_CENTRE} (column {v.width // 2})"
            for v in volumes
            if not v.centre_measured
        ]
        if problems:
            raise VolumeError.of_all(problems)
        self.volumes = list(volumes)
        self.masks = masks
        self.seed = seed
        self.rotate_probability = rotate_probability
        self.redraw_masks = redraw_masks
        self.offsets_from_data = offsets_from_data
        self.places = [
            (v, s)
            for v, volume in enumerate(volumes)
            for s in range(volume.slices)[slice(*slice_range)]
        ]
        if not self.places:
            raise ValueError(f"none of {len(volumes)} volumes has any of the slices {slice_range}")
        self._handles = HandleCache()

    def __len__(self) -> int:
        return len(self.places)

    def rotated(self, draw: Draw) -> bool:
        """Whether this draw is transposed.

        Raises:
            ValueError: the draw asks to transpose a volume that the scanner undersampled.
        """
        return self._draw_rotation(draw, self._generator(draw))

    def size(self, draw: Draw) -> tuple[int, ...]:
        """Shapes of the example's k-space and target, which must agree within a batch."""
        volume = self.volumes[self.places[draw.index][0]]
        kspace, target = (volume.height, volume.width), volume.target_size or ()
        if self.rotated(draw):
            kspace, target = kspace[::-1], target[::-1]
        return (volume.coils or 1, *kspace, *target)

    def __getitem__(self, key: Draw | int) -> Example:
        """Read one slice.

        Raises:
            VolumeError: the file cannot be read, its k-space or target has NaN or Inf, or k-space
                lacks columns or was not written in full.
            ValueError: as in `rotated`.
        """
        draw = key if isinstance(key, Draw) else Draw(epoch=0, index=key)
        volume_index, slice_index = self.places[draw.index]
        volume = self.volumes[volume_index]
        kspace, target = self._read(volume, slice_index)

        rng = self._generator(draw)
        rotated = self._draw_rotation(draw, rng)
        if rotated:
            target = None if target is None else target.swapaxes(-2, -1)
        mask = self._mask(volume, rng, rotated, kspace)
        # The columns of a transposed slice are rows of the file; they stay rows in memory.
        measured = torch.from_numpy(kspace.compress(mask.columns, axis=1 if rotated else 2))
        return Example(
            measured=measured.mT if rotated else measured,
            mask=torch.from_numpy(mask.columns)[None, None],
            acs_lines=mask.acs_lines,
            target=None if target is None else torch.from_numpy(np.ascontiguousarray(target))[None],
            data_range=float("nan") if volume.data_range is None else volume.data_range,
            rotated=rotated,
            name=volume.name,
            slice_index=slice_index,
        )

    def targets(self, volume_index: int) -> Tensor:
        """All target images of a volume, float32 (slice, h, w).

        Raises:
            VolumeError: the file cannot be read.
        """
        volume = self.volumes[volume_index]
        assert volume.target_key is not None, "the data set needs require_target"
        with _named_errors(volume, "target"):
            images = own_dataset(self._open(volume), volume.target_key)[()].astype(np.float32)
        return torch.from_numpy(images.reshape(-1, *images.shape[-2:]))

    def close(self) -> None:
        """Close this process's open files; reading opens them again."""
        self._handles.close()

    def _generator(self, draw: Draw) -> np.random.RandomState:
        volume_index, slice_index = self.places[draw.index]
        return seeded_by_draw(self.seed, draw.epoch, self.volumes[volume_index].name, slice_index)

    def _draw_rotation(self, draw: Draw, rng: np.random.RandomState) -> bool:
        volume = self.volumes[self.places[draw.index][0]]
        drawn = volume.measured is None and bool(rng.uniform() < self.rotate_probability)
        if draw.rotated and volume.measured is not None:
            raise ValueError(
                f"{volume.path} was undersampled by the scanner and cannot be transposed"
            )
        return drawn if draw.rotated is None else draw.rotated

    def _read(
        self, volume: Volume, slice_index: int
    ) -> tuple[NDArray[np.complex64], NDArray[np.float32] | None]:
        """K-space (coil, H, W) and target (h, w) of a slice, in the unit of the target.

        Only datasets of numbers are read: HDF5 leaks memory where strings are read again and again.
        """
        with _named_errors(volume, f"slice {slice_index}"):
            file = self._open(volume)
            stored = own_dataset(file, "kspace")
            kspace = np.empty(stored.shape[1:], np.complex64)  # indexing would write zeros first
            stored.read_direct(kspace, np.s_[slice_index])
            target = None
            if volume.target_key is not None:
                image = own_dataset(file, volume.target_key)[slice_index]
                target = image.astype(np.float32).reshape(image.shape[-2:])
        limits = [_limits(values) for values in (kspace, target) if values is not None]
        for name, (low, high) in zip(("k-space", "target"), limits, strict=False):
            if not (math.isfinite(low) and math.isfinite(high)):
                raise VolumeError(
                    f"{volume.path}: {name} of slice {slice_index} has NaN or Inf: {REMEDY}"
                )
        # HDF5 reads zeros where nothing was written.
        if limits[0] == (0.0, 0.0) and limits[-1][0] != limits[-1][1]:
            raise VolumeError(
                f"{volume.path}: k-space of slice {slice_index} is zero and its target is not: it "
                f"was not written in full: {REMEDY}"
            )
        kspace = kspace.reshape(-1, volume.height, volume.width)
        if volume.measured is None and lacks_columns(kspace):
            raise VolumeError(
                f"{volume.path}: k-space of slice {slice_index} lacks columns that other slices "
                f"have: it was undersampled, or not written in full: {REMEDY}"
            )
        if volume.kspace_factor != 1:
            kspace *= np.float32(volume.kspace_factor)
        return kspace, target

    def _open(self, volume: Volume) -> h5py.File:
        # A file truncated while open reads as zeros, and a replaced one may have any shape.
        if not volume.unchanged():
            raise OSError(f"the file was changed or removed after it was indexed: {REMEDY}")
        return self._handles.open(volume.path)

    def _mask(
        self,
        volume: Volume,
        rng: np.random.RandomState,
        rotated: bool,
        kspace: NDArray[np.complex64],  # (coil, H, W) as in the file
    ) -> Mask:
        if volume.measured is not None:
            columns = np.array([column == "1" for column in volume.measured])
            return Mask.of_scanner(columns)
        if rotated:
            kspace = kspace.swapaxes(-2, -1)
        width = kspace.shape[-1]
        if self.offsets_from_data:
            acquired: tuple[int, int] | None = acquired_columns(kspace)
        else:
            # A transposed slice is undersampled along readout, which is acquired in full.
            acquired = (0, width) if rotated else volume.acquired
        rng = rng if self.redraw_masks else seeded_by_name(volume.name)
        offset = acquired[0] if self.offsets_from_data and acquired is not None else None
        return self.masks.draw(width, rng, offset=offset, acquired=acquired)


@contextmanager
def _named_errors(volume: Volume, what: str) -> Iterator[None]:
    """Turn what HDF5 raises into a VolumeError that names the file."""
    try:
        yield
    except READ_ERRORS as error:
        raise VolumeError(f"{volume.path}: {what}: {error}") from error


def _limits(values: NDArray[Any]) -> tuple[float, float]:
    """The smallest and the largest value, of real and imaginary parts; NaN if there is one."""
    tensor = torch.from_numpy(values)
    low, high = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).aminmax()
    return float(low), float(high)
