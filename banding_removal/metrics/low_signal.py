"""Flat low-signal pixels of a target, background and anatomy apart: where banding is measured.

Banding is strongest where signal is low, and only where the image is flat do the filters of
`streaks` see it rather than anatomy. The widths here say what is flat to those filters, and are in
pixels at any matrix as they are. A blur that follows the anatomy (sigma 5 instead of 2 pixels at
320) no longer sees the edges that the filters see: noise-free phantom anatomy then leaves streaks
along y of 0.46 % of q (root mean square), instead of 0.25 %. In pixels it is 0.80 % at 96 and
0.70 % at 128, more because the same knee is less flat there: what the pair of orientations has to
cancel. Low-signal pixels are 33 %, 38 % and 49 % of these images.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Image = Tensor | NDArray[np.floating]
Scale = float | Sequence[float] | Tensor | None  # q, one for all slices or one each

PERCENTILE = 99.5  # of the target: the unit q
BORDER = 4  # pixels left out at the image's border: the filters never see beyond it
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
    """q: the 99.5th percentile of a volume's target, real (slice, h, w), in its unit.

    The unit of the figures. The slices at the ends of a volume hold nothing but noise; their own
    percentile is a noise level and their mask empty. They show banding best, so give every slice
    its volume's q. In the phantom, a slice's own is 0.5 to 1.4 times the volume's where there is
    anatomy, 0.1 to 0.3 times where there is none.
    """
    return float(percentile(as_real("target", target).reshape(1, -1), PERCENTILE))


def low_signal_regions(target: Image, scale: Scale = None) -> Regions:
    """Flat low-signal pixels of a target: G < 0.3 and |grad G| < 0.02, a 4-pixel border left out.

    G is t / q after a Gaussian blur, sigma 2 pixels; its gradient, per pixel, is that of central
    differences. Where there is no signal, RSS images have a floor f of noise, f^2 = coils sigma^2,
    and signal s adds to it in squares, G^2 = f^2 + s^2. So background is G^2 < 2 f^2: less signal
    than noise; f is the 5th percentile of G. Of pure noise, 0.1 % or less is taken for anatomy,
    already with one coil. Without any air, the darkest tissue counts as background; with a floor
    above 0.3 q no pixel is left.

    Args:
        target: real (h, w) or (B, h, w), array or tensor.
        scale: q, one for all or one each; None: each slice's own.

    Returns:
        Masks of the target's shape, on its device.

    Raises:
        ValueError: the target is not real or has another number of axes, or `scale` does not fit.
    """
    t = as_real("target", target)
    if t.ndim not in (2, 3):
        raise ValueError(f"target must be (h, w) or (B, h, w), not {tuple(t.shape)}")
    batch = t.reshape(-1, *t.shape[-2:])
    inner = inner_regions(batch / scales(batch, scale)[:, None, None])
    height, width = t.shape[-2:]
    masks = inner.new_zeros((3, len(batch), height, width))
    masks[..., BORDER : height - BORDER, BORDER : width - BORDER] = inner
    return Regions(*masks.reshape(3, *t.shape))


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


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian cut at 3 sigma (pixels), the border repeated: (B, h, w) -> same shape."""
    radius = round(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    padded = F.pad(image[:, None], (radius,) * 4, mode="replicate")
    along_x = F.conv2d(padded, weights.view(1, 1, 1, -1))
    return F.conv2d(along_x, weights.view(1, 1, -1, 1))[:, 0]


def percentile(values: Tensor, percent: float) -> Tensor:
    """Percentile with linear interpolation, (B, n) -> (B,); `torch.quantile` has a size limit."""
    if values.shape[1] == 0:
        return values.new_full((len(values),), math.nan)
    ordered = values.sort(dim=1).values
    place = percent / 100 * (values.shape[1] - 1)
    below = math.floor(place)
    above = min(below + 1, values.shape[1] - 1)
    return torch.lerp(ordered[:, below], ordered[:, above], place - below)


def unit_of_slices(target: Tensor, data_range: Tensor) -> Tensor:
    """The unit q of slices whose volume is not at hand: (B, h, w), (B,) -> (B,).

    The slice's own percentile, or, without anatomy, a part of the volume's largest value.
    """
    return torch.maximum(percentile(target.flatten(1), PERCENTILE), LEAST_SCALE * data_range)


def scales(target: Tensor, scale: Scale) -> Tensor:
    """The unit q of each slice of `target`, (B, h, w) -> (B,)."""
    if scale is None:
        return percentile(target.flatten(1), PERCENTILE)
    q = torch.as_tensor(scale, dtype=target.dtype, device=target.device)
    if q.shape not in ((), (len(target),)):
        raise ValueError(f"scale must be one number or one for each of {len(target)} slices")
    return q.expand(len(target))


def as_real(name: str, image: Image) -> Tensor:
    """A real array or tensor as a float64 tensor on its device."""
    if isinstance(image, Tensor):
        if image.is_complex():
            raise ValueError(f"{name} is complex; take its magnitude")
        return image.detach().double()
    if np.iscomplexobj(image):
        raise ValueError(f"{name} is complex; take its magnitude")
    return torch.from_numpy(np.array(image, dtype=np.float64))
