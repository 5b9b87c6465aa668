"""Flat low-signal pixels of a target, where banding is measured: background and anatomy.

Banding is strongest where signal is low, and only where the image is flat do the filters of
`streaks` see banding rather than anatomy. All widths are in pixels, for any matrix: the filters
decide what is flat, and their size is fixed. (A blur that scales with the anatomy, sigma 5 instead
of 2 pixels at 320 x 320, misses edges that the filters see: noise-free phantom anatomy then leaves
streaks along y of 0.46 % of q rms, instead of 0.25 %. With 2 pixels it leaves 0.80 % at 96 x 96 and
0.70 % at 128 x 128, where the same knee is less flat. The pair of orientations cancels this
remainder.) Low-signal pixels are 33 %, 38 % and 49 % of these images.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from banding_removal.metrics.filters import gaussian_blur, percentile

Image = Tensor | NDArray[np.floating]

PERCENTILE = 99.5  # of the target: the unit q
BORDER = 4  # pixels left out at the image's border, which the filters cannot reach
BLUR = 2.0  # pixels, standard deviation of the Gaussian that the mask is made with
LOW_SIGNAL = 0.3  # of q
FLAT = 0.02  # of q per pixel
FLOOR_PERCENTILE = 5.0  # of the blurred target: the noise floor of RSS images
LEAST_SCALE = 0.4  # of the volume's largest value: q of a slice without anatomy
BACKGROUND_MARGIN = 0.01  # of q, for targets whose background is exactly zero


class Regions(NamedTuple):
    """Flat low-signal pixels of a target: bool, of its shape."""

    low_signal: Tensor  # background or anatomy
    background: Tensor  # less signal than noise: air, and the darkest bone
    anatomy: Tensor


def volume_scale(target: Image) -> float:
    """q, the unit of all banding metrics: the 99.5th percentile of a volume's target.

    Use one q for all slices of a volume. The slices at its ends hold only noise and show banding
    best; their own percentile is a noise level, with which no pixel counts as low signal. In the
    phantom, a slice's own percentile is 0.5 to 1.4 times the volume's where there is anatomy, and
    0.1 to 0.3 times where there is none.

    Args:
        target: real (slice, h, w), in any unit; q is in the same unit.
    """
    return float(percentile(as_real("target", target).reshape(1, -1), PERCENTILE))


def low_signal_regions(target: Image, scale: float | None = None) -> Regions:
    """Flat low-signal pixels of a target: G < 0.3 and |grad G| < 0.02, without a 4-pixel border.

    G is t / q after a Gaussian blur (sigma 2 pixels); its gradient is that of central differences.

    Background is where there is less signal than noise. RSS images have a noise floor f with
    f^2 = coils * sigma^2, and a signal s adds to it in squares: G^2 = f^2 + s^2. So background is
    G^2 < 2 f^2, with f the 5th percentile of G. Of pure noise, at most 0.1 % counts as anatomy,
    even with one coil. In an image without air, the darkest tissue counts as background. With a
    floor above 0.3 q there are no low-signal pixels.

    Args:
        target: real (h, w).
        scale: q, in the target's unit; None: the slice's own.

    Returns:
        Masks of the target's shape, on its device.

    Raises:
        ValueError: the target is not real or not (h, w).
    """
    t = as_real("target", target)
    if t.ndim != 2:
        raise ValueError(f"target must be (h, w), not {tuple(t.shape)}")
    inner = inner_regions(t[None] / unit(t, scale))[:, 0]
    height, width = t.shape
    masks = inner.new_zeros((3, height, width))
    masks[:, BORDER : height - BORDER, BORDER : width - BORDER] = inner
    return Regions(*masks)


def inner_regions(target: Tensor) -> Tensor:
    """Low signal, background and anatomy of t / q: (B, h, w) -> bool (3, B, h - 8, w - 8)."""
    height, width = target.shape[-2:]
    if min(height, width) <= 2 * BORDER:
        size = (max(0, height - 2 * BORDER), max(0, width - 2 * BORDER))
        return target.new_zeros((3, len(target), *size), dtype=torch.bool)
    blurred = gaussian_blur(target, BLUR)
    along_y = (blurred[:, 2:, 1:-1] - blurred[:, :-2, 1:-1]) / 2
    along_x = (blurred[:, 1:-1, 2:] - blurred[:, 1:-1, :-2]) / 2
    gradient = _without_border(torch.hypot(along_y, along_x), BORDER - 1)
    inner = _without_border(blurred, BORDER)
    low_signal = (inner < LOW_SIGNAL) & (gradient < FLAT)
    floor = percentile(inner.flatten(1), FLOOR_PERCENTILE)
    limit = math.sqrt(2) * floor[:, None, None] + BACKGROUND_MARGIN
    background = low_signal & (inner < limit)
    return torch.stack([low_signal, background, low_signal & ~background])


def _without_border(image: Tensor, pixels: int) -> Tensor:
    height, width = image.shape[-2:]
    return image[..., pixels : height - pixels, pixels : width - pixels]


def unit(target: Tensor, scale: float | None) -> Tensor:
    """The unit q as a tensor like `target` (h, w): `scale`, or the slice's own percentile."""
    if scale is None:
        return percentile(target.reshape(1, -1), PERCENTILE)[0]
    return target.new_tensor(float(scale))


def unit_of_slices(target: Tensor, data_range: Tensor) -> Tensor:
    """The unit q of slices whose volume is not at hand: (B, h, w), (B,) -> (B,).

    The slice's own percentile, or, without anatomy, a part of the volume's largest value.
    """
    return torch.maximum(percentile(target.flatten(1), PERCENTILE), LEAST_SCALE * data_range)


def as_real(name: str, image: Image) -> Tensor:
    """A real array or tensor as a float64 tensor on its device.

    Raises:
        ValueError: the image is complex.
    """
    if isinstance(image, Tensor):
        if image.is_complex():
            raise ValueError(f"{name} is complex; take its magnitude")
        return image.detach().double()
    if np.iscomplexobj(image):
        raise ValueError(f"{name} is complex; take its magnitude")
    return torch.from_numpy(np.array(image, dtype=np.float64))
