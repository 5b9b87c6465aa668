"""Which columns the scanner measured: from the stored mask, and from the zeros of k-space."""

from dataclasses import dataclass

import h5py
import numpy as np
from numpy.typing import NDArray

from banding_removal.data.hdf5 import check_stored, holds, own_dataset
from banding_removal.data.mask_rules import BoolArray
from banding_removal.data.notes import Note

MIN_CENTRE_LINES = 4  # below, sensitivity maps have hardly any resolution
# Part of the acquired range that has to be zero before k-space counts as undersampled although no
# mask says so. Undersampling by 1.25 leaves out 0.2; a few lines may be lost in any scan.
UNDECLARED = 0.1
MIN_ACQUIRED = 0.5  # part of the columns; padding takes less than half of k-space


@dataclass(frozen=True, kw_only=True)
class StoredMask:
    """The mask in a file."""

    columns: BoolArray | None  # (W,); None: it is not one of whole columns
    problem: str = ""  # why not


def read_mask(file: h5py.File, lines: int, width: int) -> StoredMask | None:
    """The stored mask; None if there is none.

    Shapes such as (1, W), (H, W) or (1, 1, W, 1) are taken if all rows are equal, up to the shape
    of k-space, which has so many `lines`. What is something else has a problem: it matters only if
    k-space needs a mask.

    Raises:
        ValueError: the file refers to another one, or does not store what it declares.
    """
    if not holds(file, "mask"):
        return None
    mask = own_dataset(file, "mask")
    shape = mask.shape
    while len(shape) > 1 and shape[-1] == 1 != width:
        shape = shape[:-1]
    if (
        not shape
        or shape[-1] != width
        or not 0 < mask.size <= lines * width
        or mask.dtype.kind not in "biufc"
    ):
        return StoredMask(
            columns=None,
            problem=f"mask has shape {mask.shape}, type {mask.dtype}; expected a number for each "
            f"of {width} columns",
        )
    check_stored(mask)
    rows: BoolArray = mask[()].astype(bool).reshape(-1, width)
    if (rows != rows[0]).any():
        return StoredMask(
            columns=None,
            problem=f"mask, shape {mask.shape}, is not the same in all rows: only whole columns of "
            "k-space (phase-encode lines) can be left out",
        )
    return StoredMask(columns=rows[0])


def measured_columns(
    stored: StoredMask | None, holding: BoolArray | None
) -> tuple[BoolArray | None, list[Note]]:
    """Which columns the scanner measured, (W,); None: all, the volume is fully sampled.

    What the scanner left out is zero in k-space. So a mask that leaves out only the padding on both
    sides is none, and one that leaves out columns which hold data was stored for training.

    Args:
        stored: the mask in the file; None: there is none.
        holding: which columns of a slice hold data; None: it is not known, the mask is believed.

    Raises:
        ValueError: k-space was undersampled, and the mask does not say in which columns.
    """
    mask = None if stored is None else stored.columns
    if holding is None:
        if stored is not None and (mask is None or not mask.any()):
            raise ValueError(stored.problem or "mask says that no column was measured")
        return (None, []) if mask is None or mask.all() else (mask, [])
    columns = np.flatnonzero(holding)
    inside = np.zeros_like(holding)
    inside[columns[0] : columns[-1] + 1] = True
    empty = inside & ~holding
    undersampled = _has_gaps(holding)
    counts = f"{holding.sum()} of {len(holding)} columns hold data"
    if stored is not None and mask is None:
        if undersampled:
            raise ValueError(stored.problem)
        return None, [("unused_mask", f"{counts}; {stored.problem}")]
    allowed = np.ones_like(holding) if mask is None else mask
    if mask is not None:
        counts += f", the mask has {mask.sum()}"
    if (holding & ~allowed).any():
        # With gaps of its own, k-space was undersampled in another way than the mask says.
        return (holding if undersampled else None), [("unused_mask", counts)]
    if undersampled and (empty & allowed).sum() > UNDECLARED * inside.sum():
        return holding, [("undeclared_mask", counts)]
    leaves_out = (empty & ~allowed).any() or allowed.sum() < MIN_ACQUIRED * len(allowed)
    return (mask if leaves_out else None), []


def lacks_columns(kspace: NDArray[np.complex64]) -> bool:
    """Whether a slice of a volume that is fully sampled is not: (coil, H, W).

    Padding and partial Fourier leave out columns at the sides; here, those between others count.
    """
    # The middle row nearly always has them all: only without it, whole columns are looked at.
    middle = np.asarray(kspace[:, kspace.shape[1] // 2].any(axis=0))
    return _has_gaps(middle) and _has_gaps(np.asarray(kspace.any(axis=(0, 1))))


def _has_gaps(holding: BoolArray) -> bool:
    """Whether so many columns (W,) between others are empty that they were not measured."""
    acquired = np.trim_zeros(holding)
    return bool((~acquired).sum() > UNDECLARED * len(acquired))
