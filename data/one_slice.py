"""What one slice of a volume says about all of it: which columns were measured, and its target."""

import h5py
import numpy as np
from numpy.typing import NDArray

from banding_removal.data.image_match import compare_images
from banding_removal.data.ismrmrd import ScanHeader
from banding_removal.data.mask_rules import BoolArray
from banding_removal.data.masks import Mask
from banding_removal.data.notes import Note
from banding_removal.data.plausibility import (
    HOLDS_DATA,
    check_centre,
    columns_with_data,
    energy_of,
)
from banding_removal.data.stored_mask import MIN_CENTRE_LINES, StoredMask, measured_columns


def check_slice(
    kspace: h5py.Dataset,
    target: h5py.Dataset | None,
    header: ScanHeader,
    mask: StoredMask | None,
) -> tuple[BoolArray | None, list[Note]]:
    """Which columns were measured, and whether a slice's target is the image of its k-space.

    The slice is one that is not empty.

    Args:
        kspace: complex, [slice, coil, H, W] or [slice, H, W].
        target: real, [slice, h, w] or [slice, 1, h, w]; None: there is none.
        header: of the volume.
        mask: that of the file; None: there is none.

    Returns:
        The measured columns, (W,), None if all were; and what is odd.

    Raises:
        ValueError: it is not; axes are in another order; slices were undersampled differently.
    """
    slices = kspace.shape[0]
    # Not in the middle: there, slices in reverse order would not show.
    first = max(0, slices - 1) // 3
    for index in dict.fromkeys((first, slices // 2, 2 * slices // 3, 0, slices - 1)):
        values = _slice_of(kspace, index)
        energy = energy_of(values)
        if energy is not None:
            break
    holding = None if energy is None else columns_with_data(energy, header)
    measured, notes = measured_columns(mask, holding)
    if energy is not None:
        notes += check_centre(energy)
    if measured is not None:
        lines = Mask.of_scanner(measured).acs_lines
        if lines < MIN_CENTRE_LINES and measured[len(measured) // 2]:
            notes.append(("few_centre_lines", str(lines)))
        _check_same_columns(kspace, measured)
    if energy is not None and target is not None:
        image = target[index].astype(np.float32).reshape(target.shape[-2:])
        if np.isfinite(image).all():
            undersampled = measured is not None
            found = compare_images(values, image, undersampled=undersampled)
            # Slices and coils that are swapped have the right shape if there are equally many.
            if found and kspace.ndim == 4 and kspace.shape[0] == kspace.shape[1]:
                swapped = kspace[:, index].astype(np.complex64)
                if not compare_images(swapped, image, undersampled=undersampled):
                    raise ValueError("slices and coils are swapped; expected [slice, coil, H, W]")
            notes += found
    return measured, notes


def _slice_of(kspace: h5py.Dataset, index: int) -> NDArray[np.complex64]:
    """A slice of k-space, (coil, H, W)."""
    values = np.empty(kspace.shape[1:], np.complex64)
    kspace.read_direct(values, np.s_[index])
    return values.reshape(-1, *kspace.shape[-2:])


def _check_same_columns(kspace: h5py.Dataset, measured: BoolArray) -> None:
    """Check the first and the last slice of a volume that was undersampled.

    Raises:
        ValueError: they hold data in other columns.
    """
    for index in {0, kspace.shape[0] - 1}:
        energy = energy_of(_slice_of(kspace, index))
        if energy is None:
            continue
        lines = energy.sum(0, np.float64)
        if (lines[~measured] > HOLDS_DATA * lines.max()).any():
            raise ValueError(
                f"slice {index} of kspace holds data in columns that other slices or the mask "
                "leave out: all slices must be undersampled in the same columns"
            )
