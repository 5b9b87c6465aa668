"""A direct term against banding: streaks along phase encode, no stronger than texture across it.

The adversary of `losses.orientation` learns what tells the orientation; this is the same wish
written down for what is known of banding beforehand. It needs no second network.

With r the reconstruction and t the target, phase encoding along the last axis, E_along and E_across
the mean squares of the two filters of `streaks` in flat low-signal pixels,

    D = log E_along(r) / E_across(r) - log E_along(t) / E_across(t),      term = mean of |D + m|

over box lengths, and background and anatomy apart, so that the one cannot make up for the other.
|.| is rounded at zero, sqrt(x^2 + h^2) - h, where it is the
few pixels' chance; the pull of a square would fade before the streaks have gone. It asks for a
little less than none (m), since the reconstruction loss pulls the other way and it ends between.
Background weighs less than anatomy: streaks go from it sooner, and with equal weights they stay in
anatomy for longer (docs/results.md).
The target's own ratio takes anatomy out. E_across(r) is a constant for the gradient: otherwise
texture written across the streaks would do as well as their removal, and costs less loss.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from banding_removal.metrics.low_signal import BORDER, inner_regions, unit_of_slices
from banding_removal.metrics.streaks import MIN_PIXELS

# Pixels averaged along a streak; not the length that the metric has, which is to judge this.
LENGTHS = (5, 13)
MARGIN = max(LENGTHS) // 2
ROUNDED = 0.1  # h: 0.4 dB


def streak_term(
    image: Tensor, target: Tensor, data_range: Tensor, *, below: float, background: float
) -> Tensor:
    """Mean of the rounded |D + m| (natural logarithms) over box lengths, regions and slices.

    Where a slice has less than 200 pixels of a region, that does not count. Without any that counts
    the term is 0, with a gradient of 0.

    Args:
        image: reconstruction as it was made, real (B, 1, h, w), phase encoding along w.
        target: likewise, of the same orientation.
        data_range: (B,), the largest value of each volume.
        below: m, in natural logarithms.
        background: weight of the background, 0 to 1; anatomy has the rest.

    Returns:
        A scalar; sqrt(m^2 + h^2) - h where there is nothing to remove.
    """
    if min(image.shape[-2:]) <= 2 * MARGIN:
        return 0 * image.sum()
    scale = unit_of_slices(target[:, 0], data_range)[:, None, None]
    reference = target[:, 0] / scale
    _, *regions = inner_regions(reference.double())
    masks = torch.stack([_shrink(region, MARGIN - BORDER) for region in regions]).to(image.dtype)
    pixels = masks.sum((-2, -1))  # (region, B), as all below
    h = image.new_tensor(ROUNDED)
    rounded = torch.zeros_like(pixels)
    for length in LENGTHS:
        along, across = _log_energies(image[:, 0] / scale, length, masks, pixels)
        along_t, across_t = _log_energies(reference, length, masks, pixels)
        difference = along - across.detach() - (along_t - across_t)
        rounded = rounded + (torch.hypot(difference + below, h) - h) / len(LENGTHS)
    counts = pixels >= MIN_PIXELS
    weights = image.new_tensor([background, 1 - background])[:, None] * counts
    return (weights * torch.where(counts, rounded, 0.0)).sum() / weights.sum().clamp(min=1e-9)


def _log_energies(
    image: Tensor, length: int, masks: Tensor, pixels: Tensor
) -> tuple[Tensor, Tensor]:
    """Log of E_along and of E_across, (region, B) each; 0 where there are no pixels.

    Args:
        image: r / q, (B, h, w).
        length: of the box.
        masks: (region, B, h - 2 MARGIN, w - 2 MARGIN), 0 or 1.
        pixels: in each, (region, B).
    """

    def log_energy(x: Tensor, masks: Tensor) -> Tensor:
        smooth = F.avg_pool2d(x[:, None], (1, length), stride=1)[:, 0]
        high = smooth[:, 1:-1] - (smooth[:, :-2] + smooth[:, 2:]) / 2
        inside = high[:, MARGIN - 1 : high.shape[1] - MARGIN + 1]
        energy = _shrink_columns(inside / math.sqrt(1.5), MARGIN - length // 2).square()
        mean = (energy * masks).sum((-2, -1)) / pixels.clamp(min=1)
        return torch.where(mean > 0, torch.where(mean > 0, mean, 1.0).log(), 0.0)

    return log_energy(image, masks), log_energy(image.mT, masks.mT)


def _shrink(x: Tensor, pixels: int) -> Tensor:
    """Without `pixels` at each border of the last two axes."""
    return _shrink_columns(x[..., pixels : x.shape[-2] - pixels, :], pixels)


def _shrink_columns(x: Tensor, pixels: int) -> Tensor:
    return x[..., pixels : x.shape[-1] - pixels]
