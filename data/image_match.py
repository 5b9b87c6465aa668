"""Whether a target is the image of its k-space."""

import numpy as np
import scipy.fft
import scipy.ndimage
from numpy.typing import NDArray

from banding_removal.data.notes import Note, NoteKind

Size = tuple[int, int]
Image = NDArray[np.float64]

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


def compare_images(
    kspace: NDArray[np.complex64], target: NDArray[np.float32], *, undersampled: bool
) -> tuple[list[Note], float | None]:
    """Compare a target with the image of its k-space.

    Args:
        kspace: (coil, H, W), finite and not zero.
        target: (h, w), finite.
        undersampled: whether columns were left out, so that the image has artefacts.

    Returns:
        What is odd, and the unit of the target over that of the image, None if that is not known.

    Raises:
        ValueError: they have little in common.
    """
    height, width = kspace.shape[-2:]
    size = (min(height, target.shape[0]), min(width, target.shape[1]))
    image, upright = _rss_image(kspace, size), _center(target, size)
    if min(size) <= 2 * MAX_SHIFT or not (np.isfinite(image).all() and np.ptp(image) > 0):
        return [], None  # too small, beyond single precision, or empty
    if not np.ptp(upright) > 0:
        return [("other_target", f"it is {upright[0, 0]:g} everywhere")], None
    full, shift = _correlation(image, upright)
    notes: list[Note] = []
    turned = None
    if undersampled and full > ALIASED:
        notes.append(("aliased_target", f"correlation {full:.4f}"))
    if full < SAME_IMAGE and not undersampled:
        turned = _turned(image, upright, full)
    if turned is not None:
        how, upright = turned
        notes.append(("turned_target", how))
    elif full < SAME_IMAGE:
        similarity = max(full, _correlation(_blurred(image), _blurred(upright))[0])
        if similarity < (MIN_SIMILARITY_UNDERSAMPLED if undersampled else MIN_SIMILARITY):
            raise ValueError(
                f"the target is not the image of kspace (correlation {similarity:.2f}): the axes "
                "may be in another order than [slice, coil, H, W], the zero frequency not in the "
                "middle, or the target from another scan or of another resolution"
            )
        if not undersampled:
            notes.append(("other_target", f"correlation {full:.2f}"))
    elif shift != (0, 0):
        notes.append(("shifted_target", f"by {shift[0]} x {shift[1]} pixels"))
    factor = float(np.sum(image * upright) / np.sum(image * image))
    if not 1 / MAX_FACTOR <= factor <= MAX_FACTOR:
        kind: NoteKind = "other_unit_undersampled" if undersampled else "other_unit"
        notes.append((kind, f"{factor:.4g} times the image of k-space"))
    return notes, factor


def _center(image: NDArray[np.float32], size: Size) -> Image:
    top, left = ((a - b) // 2 for a, b in zip(image.shape, size, strict=True))
    return image[top : top + size[0], left : left + size[1]].astype(np.float64)


def _rss_image(kspace: NDArray[np.complex64], size: Size) -> Image:
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
    with np.errstate(over="ignore"):
        energy: NDArray[np.float32] = (images.real**2 + images.imag**2).sum(0)
    return np.sqrt(energy.astype(np.float64))


def _blurred(image: Image) -> Image:
    blurred: Image = scipy.ndimage.uniform_filter(image, max(1, max(image.shape) // BLOCKS))
    return blurred


def _correlation(a: Image, b: Image) -> tuple[float, tuple[int, int]]:
    """Largest normalised correlation over small shifts of `b`, and that shift in pixels."""
    a, b = (x / np.abs(x).max() for x in (a, b))
    a, b = a - a.mean(), b - b.mean()
    products = scipy.fft.irfft2(scipy.fft.rfft2(a) * scipy.fft.rfft2(b).conj(), s=a.shape)
    near = np.roll(products, (MAX_SHIFT, MAX_SHIFT), (0, 1))[: 2 * MAX_SHIFT + 1]
    near = near[:, : 2 * MAX_SHIFT + 1]
    best = np.unravel_index(np.argmax(near), near.shape)
    norm = np.sqrt((a * a).sum() * (b * b).sum())
    return float(near[best] / norm), (int(best[0]) - MAX_SHIFT, int(best[1]) - MAX_SHIFT)


def _turned(image: Image, target: Image, upright: float) -> tuple[str, Image] | None:
    """How the target is flipped against the image, and flipped back; None if it is not.

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
    return (best, flips[best]) if found[best] > max(TURNED_IMAGE, upright) else None
