"""Whether k-space, header and target of a volume fit each other: axes, centre, missing lines.

A file whose axes are in another order has the right number of them, and trains in silence. These
checks are made once, when a volume is indexed, and read one slice.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from banding_removal.data.ismrmrd import ScanHeader
from banding_removal.data.mask_rules import BoolArray
from banding_removal.data.notes import Note

Size = tuple[int, int]

MAX_COILS = 128  # more in one array are not built

# Energy of a line of k-space that holds data, over that of the strongest line. In noise it is above
# 1e-6 in any scan, and rounding errors of single precision are at 1e-14.
HOLDS_DATA = 1e-10
MIN_CENTRE_ENERGY = 0.25  # part in the central half of an axis: noise 0.5, images 0.8 to 1.0
MAX_ZEROS = 0.35  # part of acquired k-space; a corner that is cut off takes 0.21
MIN_SIZE_OF_CENTRE_CHECK = 8  # samples
MAX_OFFSET = 8  # columns between the middle and the strongest one
STANDS_OUT = 30.0  # strongest column over the median one
# The same, of an axis along which the energy is spread as in an image, or as in radial k-space.
EVEN = 5.0


def check_shape(shape: Sequence[int], header: ScanHeader, target_size: Size | None) -> list[Note]:
    """Compare the shape of k-space with the header and the target.

    Args:
        shape: of k-space, [slice, coil, H, W] or [slice, H, W].
        header: of the volume.
        target_size: (h, w).

    Raises:
        ValueError: the axes are in another order.
    """
    slices, *coil_axis, height, width = shape
    expected = "[slice, coil, H, W]" if coil_axis else "[slice, H, W]"
    encoded = header.encoded_size
    notes: list[Note] = []
    if coil_axis:
        coils = coil_axis[0]
        # Which two axes are the image's, if others than the last.
        others = [(shape[a], shape[b]) for a, b in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3))]
        of_header = encoded is not None and encoded != (height, width) and encoded in others
        of_target = not _fits(target_size, (height, width)) and any(
            _fits(target_size, other) for other in others[3:]
        )
        many = coils > MAX_COILS and min(height, width) < coils
        if of_header or of_target or many:
            raise ValueError(
                f"kspace has shape {tuple(shape)}: the axes are in another order, coils seem to "
                f"come last or between; expected {expected}, W along phase encode"
            )
        channels = header.receiver_channels
        if channels == slices != coils or min(height, width) < coils:
            said = "" if channels is None else f", the header gives {channels} receiver channels"
            notes.append(("swapped_coils", f"kspace has shape {tuple(shape)}{said}"))
    if encoded is not None:
        x, y = encoded
        # Oversampling of readout is often removed.
        if height not in (x, x // 2) or width != y:
            if height == y and width in (x, x // 2):
                raise ValueError(
                    f"kspace is {height} x {width}, but the header gives a readout of {x} and {y} "
                    f"phase-encode lines: the axes are swapped; expected {expected}, H along "
                    "readout, W along phase encode"
                )
            notes.append(("other_matrix", f"{x} x {y}, k-space is {height} x {width}"))
    if target_size is not None and not _fits(target_size, (height, width)):
        sizes = f"{target_size[0]} x {target_size[1]}, k-space is {height} x {width}"
        notes.append(("larger_target", sizes))
    return notes


def _fits(size: Size | None, into: Size) -> bool:
    return size is not None and size[0] <= into[0] and size[1] <= into[1]


def energy_of(kspace: NDArray[np.complex64]) -> NDArray[np.float32] | None:
    """|k|^2 summed over coils: (coil, H, W) -> (H, W); None if all is zero or any is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        energy: NDArray[np.float32] = (kspace.real**2 + kspace.imag**2).sum(0)
        return energy if 0 < energy.sum() < np.inf else None


def columns_with_data(energy: NDArray[np.float32], header: ScanHeader) -> BoolArray:
    """Which columns of k-space hold data, (W,); the axes and the centre are checked on the way.

    Args:
        energy: (H, W), of `energy_of`.
        header: of the volume.

    Raises:
        ValueError: lines are missing along the wrong axis or along both, or the zero frequency is
            not in the middle.
    """
    along_rows, along_columns = energy.sum(1, np.float64), energy.sum(0, np.float64)
    rows, columns = (e > HOLDS_DATA * e.max() for e in (along_rows, along_columns))
    lines = np.flatnonzero(rows)
    top, bottom = int(lines[0]), int(lines[-1]) + 1
    missing_rows = 1 - rows[top:bottom].mean()
    padded_rows = header.acquired == (top, bottom) and top > 0 and bottom < len(rows)
    if columns.all() and (missing_rows > MAX_ZEROS or padded_rows):
        raise ValueError(
            f"{np.sum(~rows)} of {len(rows)} rows of kspace are zero and no column is: the axes "
            "are swapped; expected [slice, coil, H, W], W along phase encode"
        )
    zeros = np.mean(energy[np.ix_(rows, columns)] == 0)
    if zeros > MAX_ZEROS:
        raise ValueError(
            f"{zeros:.0%} of the samples in kspace are zero within its rows and columns: only "
            "whole columns (phase-encode lines) can be left out"
        )
    for name, profile in (("rows", along_rows), ("columns", along_columns)):
        quarter = len(profile) // 4
        part = profile[quarter : len(profile) - quarter].sum() / profile.sum()
        if len(profile) >= MIN_SIZE_OF_CENTRE_CHECK and part < MIN_CENTRE_ENERGY:
            raise ValueError(
                f"kspace is not centred: its middle {name} have {part:.0%} of the energy; the zero "
                "frequency must be in the middle (fftshift)"
            )
    found: BoolArray = columns
    return found


def check_centre(energy: NDArray[np.float32]) -> list[Note]:
    """Whether k-space has its energy around the middle, where masks have their centre.

    Args:
        energy: (H, W), of `energy_of`.
    """
    rows, columns = energy.sum(1, np.float64), energy.sum(0, np.float64)
    by_rows, by_columns = (e.max() / np.median(e[e > 0]) for e in (rows, columns))
    # In noise alone, neither axis stands out, and any column may be the strongest.
    if max(by_rows, by_columns) < STANDS_OUT:
        return []
    notes: list[Note] = []
    if min(by_rows, by_columns) < EVEN:
        peaks = f"the strongest row has {by_rows:.3g} times the energy of the median row"
        notes.append(("even_axis", f"{peaks}, the strongest column {by_columns:.3g} times"))
    width, strongest = len(columns), int(np.argmax(columns))
    if by_columns > STANDS_OUT and abs(strongest - width // 2) > max(MAX_OFFSET, width // 16):
        notes.append(("off_centre", f"column {strongest} of {width}"))
    return notes
