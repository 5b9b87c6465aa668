"""What one slice of a volume says about all of it: which columns were measured, and its target."""

from collections.abc import Iterable
from dataclasses import dataclass

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
from banding_removal.data.stored_mask import (
    MIN_CENTRE_LINES,
    UNDECLARED,
    StoredMask,
    measured_columns,
)

UNIT_TOLERANCE = 0.1  # relative, between slices


@dataclass(frozen=True, kw_only=True)
class SliceFindings:
    """What a slice says about its volume."""

    measured: BoolArray | None  # columns, (W,); None: all
    kspace_factor: float  # brings k-space into the unit of the target
    notes: list[Note]  # what is odd


def check_slice(
    kspace: h5py.Dataset,
    target: h5py.Dataset | None,
    header: ScanHeader,
    mask: StoredMask | None,
) -> SliceFindings:
    """Which columns were measured, and whether a slice's target is the image of its k-space.

    The slice is one that is not empty.

    Args:
        kspace: complex, [slice, coil, H, W] or [slice, H, W].
        target: real, [slice, h, w] or [slice, 1, h, w]; None: there is none.
        header: of the volume.
        mask: that of the file; None: there is none.

    Raises:
        ValueError: the target is not the image of k-space; axes are in another order; slices were
            undersampled differently, or their targets are in different units; no slice can be used.
    """
    slices = kspace.shape[0]
    # Not in the middle: there, slices in reverse order would not show.
    first = max(0, slices - 1) // 3
    looked_at = dict.fromkeys((first, slices // 2, 2 * slices // 3, 0, slices - 1))
    for index in looked_at:
        values = _slice_of(kspace, index)
        energy = energy_of(values)
        if energy is not None:
            break
    else:
        _check_empty(kspace, target, looked_at)
    holding = None if energy is None else columns_with_data(energy, header)
    measured, notes = measured_columns(mask, holding)
    if energy is not None:
        notes += check_centre(energy)
    if measured is not None:
        lines = Mask.of_scanner(measured).acs_lines
        if lines < MIN_CENTRE_LINES and measured[len(measured) // 2]:
            notes.append(("few_centre_lines", str(lines)))
        _check_same_columns(kspace, measured, measured if holding is None else measured & holding)
    factor = 1.0
    if energy is not None and target is not None:
        found, factor = _check_target(
            kspace, target, index, values, undersampled=measured is not None
        )
        notes += found
    return SliceFindings(measured=measured, kspace_factor=factor, notes=notes)


def _check_empty(
    kspace: h5py.Dataset, target: h5py.Dataset | None, looked_at: Iterable[int]
) -> None:
    """Explain why none of the slices looked at can be used.

    Raises:
        ValueError: one has NaN or Inf, or is zero and its target is not. Otherwise they are empty.
    """
    useless = "kspace is zero or not finite in every slice that was looked at"
    for index in looked_at:
        values = _slice_of(kspace, index)
        if not np.isfinite(values).all():
            raise ValueError(useless)
        if target is not None and not values.any() and np.ptp(_image_of(target, index)) > 0:
            raise ValueError(f"{useless}, and the target is not: it was not written")


def _check_target(
    kspace: h5py.Dataset,
    target: h5py.Dataset,
    index: int,
    values: NDArray[np.complex64],
    *,
    undersampled: bool,
) -> tuple[list[Note], float]:
    """Compare the target of a slice with its k-space, which is given as `values`.

    Returns:
        What is odd, and the factor that brings k-space into the unit of the target.

    Raises:
        ValueError: the target is not the image of k-space, or targets are in different units.
    """
    image = _image_of(target, index)
    if not np.isfinite(image).all():
        return [], 1.0
    found, unit = compare_images(values, image, undersampled=undersampled)
    if undersampled:  # the image has artefacts: it does not match exactly, in any order of axes
        return found, 1.0
    if unit is not None and _differ_in_unit_only(found):
        if abs(unit - 1) > UNIT_TOLERANCE:
            _check_same_unit(kspace, target, index, unit)
    # Slices and coils that are swapped have the right shape if there are equally many.
    elif found and kspace.ndim == 4 and kspace.shape[0] == kspace.shape[1]:
        swapped = kspace[:, index].astype(np.complex64)
        if _exact_unit(swapped, image) is not None:
            raise ValueError("slices and coils are swapped; expected [slice, coil, H, W]")
    return found, unit if unit is not None and "other_unit" in dict(found) else 1.0


def _differ_in_unit_only(found: list[Note]) -> bool:
    return dict(found).keys() <= {"other_unit"}


def _exact_unit(values: NDArray[np.complex64], image: NDArray[np.float32]) -> float | None:
    """The unit of a target over that of the image of k-space; None if they differ otherwise."""
    try:
        found, unit = compare_images(values, image, undersampled=False)
    except ValueError:  # has little in common with it, as in noise of which the target is filtered
        return None
    return unit if _differ_in_unit_only(found) else None


def _check_same_unit(kspace: h5py.Dataset, target: h5py.Dataset, index: int, unit: float) -> None:
    """Check that other slices have the unit of slice `index`, where that can be told exactly.

    Not the first and the last slice: often there is no anatomy in them.

    Raises:
        ValueError: they are in other units than `unit`, that of the target over that of k-space.
    """
    slices = kspace.shape[0]
    for place in {slices // 4, 3 * slices // 4} - {index}:
        values, image = _slice_of(kspace, place), _image_of(target, place)
        if energy_of(values) is None or not np.isfinite(image).all():
            continue
        other = _exact_unit(values, image)
        if other is not None and abs(other - unit) > UNIT_TOLERANCE * unit:
            raise ValueError(
                f"targets are in different units: that of slice {place} is {other:.4g} times the "
                f"image of its k-space, that of slice {index} {unit:.4g} times; scale all slices "
                "of a volume alike"
            )


def _image_of(target: h5py.Dataset, index: int) -> NDArray[np.float32]:
    """A slice of the target, (h, w)."""
    image: NDArray[np.float32] = target[index].astype(np.float32).reshape(target.shape[-2:])
    return image


def _slice_of(kspace: h5py.Dataset, index: int) -> NDArray[np.complex64]:
    """A slice of k-space, (coil, H, W)."""
    values = np.empty(kspace.shape[1:], np.complex64)
    kspace.read_direct(values, np.s_[index])
    return values.reshape(-1, *kspace.shape[-2:])


def _check_same_columns(kspace: h5py.Dataset, measured: BoolArray, held: BoolArray) -> None:
    """Check the first, the middle and the last slice of a volume that was undersampled.

    Args:
        kspace: of the volume.
        measured: columns that may hold data, (W,).
        held: columns that hold data in the reference slice, (W,).

    Raises:
        ValueError: they hold data in other columns, or lack many that the reference slice has.
    """
    for index in {0, kspace.shape[0] // 2, kspace.shape[0] - 1}:
        energy = energy_of(_slice_of(kspace, index))
        if energy is None:
            continue
        lines = energy.sum(0, np.float64)
        holding = lines > HOLDS_DATA * lines.max()
        others = (holding & ~measured).any()
        if others or (held & ~holding).sum() > UNDECLARED * held.sum():
            what = "lacks columns that other slices have: write the slice again, or remove the file"
            if others:
                what = (
                    "holds data in columns that other slices or the mask leave out: all slices "
                    "must be undersampled in the same columns"
                )
            raise ValueError(f"slice {index} of kspace {what}")
