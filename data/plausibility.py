"""Whether k-space, header and target of a volume fit each other: axes, centre, images.

A file whose axes are in another order has the right number of them, and trains in silence. These
checks are made once, when a volume is indexed, and read one slice.
"""

from collections.abc import Sequence

import numpy as np
import scipy.fft
import scipy.ndimage
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

# Correlation of a target with the image of its k-space, means removed, best of small shifts. On
# phantoms of usual and of three times that noise (means of blocks in brackets, which noise does
# not lower):
#   the target itself               1.00
#   Gaussian filter of 1, 2 pixels  0.42 to 0.98 (0.89 to 1.00)
#   median of 5 x 5 pixels          0.37 to 0.97 (0.88 to 1.00)
#   intensity correction by 1:9     0.39 to 0.86 (0.06 to 0.85)
#   of the next slice of 12         0.11 to 0.73 (0.50 to 0.83)
#   of another volume               0.09 to 0.62 (0.35 to 0.71)
#   slices as coils                 0.16 to 0.65 (0.27 to 0.70)
#   shifted by half an axis         0.06 to 0.49 (0.21 to 0.57)
#   transposed                      0.08 to 0.33 (0.12 to 0.38)
# Both must be low before a volume is refused. Undersampled k-space has 0.48 to 0.93 (0.78 to 0.97).
SAME_IMAGE = 0.99
TURNED_IMAGE = 0.9
ALIASED = 0.9999  # of undersampled k-space
MIN_SIMILARITY = 0.6
MIN_SIMILARITY_UNDERSAMPLED = 0.3
MAX_SHIFT = 4  # pixels
BLOCKS = 24  # along the longer axis
MAX_FACTOR = 2.0  # between the units of target and k-space


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
    """Whether the strongest column of k-space is near the middle, where masks have their centre.

    Args:
        energy: (H, W), of `energy_of`.
    """
    columns = energy.sum(0, np.float64)
    width = len(columns)
    strongest = int(np.argmax(columns))
    # In noise alone, any column may be the strongest.
    stands_out = columns[strongest] > STANDS_OUT * np.median(columns[columns > 0])
    if not stands_out or abs(strongest - width // 2) <= max(MAX_OFFSET, width // 16):
        return []
    return [("off_centre", f"column {strongest} of {width}")]


def compare_images(
    kspace: NDArray[np.complex64], target: NDArray[np.float32], *, undersampled: bool
) -> list[Note]:
    """Compare a target with the image of its k-space.

    Args:
        kspace: (coil, H, W), finite and not zero.
        target: (h, w), finite.
        undersampled: whether columns were left out, so that the image has artefacts.

    Raises:
        ValueError: they have little in common.
    """
    height, width = kspace.shape[-2:]
    size = (min(height, target.shape[0]), min(width, target.shape[1]))
    target = _center(target, size)
    image = _rss_image(kspace, size)
    if min(size) <= 2 * MAX_SHIFT or not np.ptp(image) > 0:
        return []  # too small, or empty
    if not np.ptp(target) > 0:
        return [("other_target", f"it is {target[0, 0]:g} everywhere")]
    full, shift = _correlation(image, target)
    notes: list[Note] = []
    if undersampled and full > ALIASED:
        notes.append(("aliased_target", f"correlation {full:.4f}"))
    if full < SAME_IMAGE:
        turned = None if undersampled else _turned(image, target, full)
        if turned is not None:
            return [("turned_target", turned)]
        similarity = max(full, _correlation(_blurred(image), _blurred(target))[0])
        if similarity < (MIN_SIMILARITY_UNDERSAMPLED if undersampled else MIN_SIMILARITY):
            raise ValueError(
                f"the target is not the image of kspace (correlation {similarity:.2f}): the axes "
                "may be in another order than [slice, coil, H, W], the zero frequency not in the "
                "middle, or the target from another scan"
            )
        if not undersampled:
            notes.append(("other_target", f"correlation {full:.2f}"))
    elif shift != (0, 0):
        notes.append(("shifted_target", f"by {shift[0]} x {shift[1]} pixels"))
    factor = np.sum(image * target, dtype=np.float64) / np.sum(image * image, dtype=np.float64)
    if not 1 / MAX_FACTOR <= factor <= MAX_FACTOR:
        notes.append(("other_unit", f"{factor:.3g} times the image of k-space"))
    return notes


def _center(image: NDArray[np.float32], size: Size) -> NDArray[np.float32]:
    top, left = ((a - b) // 2 for a, b in zip(image.shape, size, strict=True))
    return image[top : top + size[0], left : left + size[1]]


def _rss_image(kspace: NDArray[np.complex64], size: Size) -> NDArray[np.float32]:
    """Central part of the root-sum-of-squares image, (coil, H, W) -> (h, w).

    Without shifts of k-space, which change only the phase of an image; an image that is not shifted
    back starts with its middle. Rows that are cut off are not transformed along the other axis.
    """
    rows, columns = (
        (np.arange(part) + (whole - part) // 2 - whole // 2) % whole
        for whole, part in zip(kspace.shape[-2:], size, strict=True)
    )
    lines = scipy.fft.ifft(kspace, axis=-2, norm="ortho")[:, rows]
    images = scipy.fft.ifft(lines, axis=-1, norm="ortho")[..., columns]
    rss: NDArray[np.float32] = np.sqrt((images.real**2 + images.imag**2).sum(0))
    return rss


def _blurred(image: NDArray[np.float32]) -> NDArray[np.float32]:
    blurred: NDArray[np.float32] = scipy.ndimage.uniform_filter(
        image, max(1, max(image.shape) // BLOCKS)
    )
    return blurred


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> tuple[float, tuple[int, int]]:
    """Largest normalised correlation over small shifts of `b`, and that shift in pixels."""
    a, b = (x.astype(np.float64) / np.abs(x).max() for x in (a, b))
    a, b = a - a.mean(), b - b.mean()
    products = scipy.fft.irfft2(scipy.fft.rfft2(a) * scipy.fft.rfft2(b).conj(), s=a.shape)
    near = np.roll(products, (MAX_SHIFT, MAX_SHIFT), (0, 1))[: 2 * MAX_SHIFT + 1]
    near = near[:, : 2 * MAX_SHIFT + 1]
    best = np.unravel_index(np.argmax(near), near.shape)
    norm = np.sqrt((a * a).sum() * (b * b).sum())
    return float(near[best] / norm), (int(best[0]) - MAX_SHIFT, int(best[1]) - MAX_SHIFT)


def _turned(image: NDArray[np.float32], target: NDArray[np.float32], upright: float) -> str | None:
    """How the target is flipped against the image; None if it is not.

    Raises:
        ValueError: it is transposed, so that phase encoding is not along the last axis of both.
    """
    flips = {
        "flipped top to bottom": target[::-1],
        "flipped left to right": target[:, ::-1],
        "turned by 180 degrees": target[::-1, ::-1],
    }
    turns = [target.T, target.T[::-1], target.T[:, ::-1], target.T[::-1, ::-1]]
    if target.shape[0] == target.shape[1]:
        transposed = max(_correlation(image, turn)[0] for turn in turns)
        if transposed > max(TURNED_IMAGE, upright):
            raise ValueError(
                "the target is transposed against the image of kspace: the axes of one of both are "
                "swapped; expected [slice, coil, H, W], W along phase encode, and [slice, h, w]"
            )
    found = {name: _correlation(image, flip)[0] for name, flip in flips.items()}
    best = max(found, key=found.__getitem__)
    return best if found[best] > max(TURNED_IMAGE, upright) else None
