"""A direct loss against banding: streaks along phase encode should not exceed those across it.

The adversary of `losses.orientation` has to learn what distinguishes the two orientations. This
term uses what is already known about banding, and needs no second network.

r is the reconstruction and t the target, with phase encoding along the last axis. E_along and
E_across are the mean squares of the two filters of `metrics.streaks` in flat low-signal pixels:

    D = log E_along(r) / E_across(r) - log E_along(t) / E_across(t),      term = mean of |D + m|

over box lengths, and over background and anatomy separately, so that one cannot make up for the
other.

* |x| is rounded at zero, sqrt(x^2 + h^2) - h: a D near zero may be mere chance, because there are
  few pixels. A square would not work: its gradient fades before the streaks are gone.
* m (`streak_below`) aims slightly below zero banding, because the reconstruction loss pulls the
  other way and training ends in between.
* Background weighs less than anatomy: streaks disappear there sooner, and with equal weights they
  stay in anatomy for longer (docs/history.md).
* Subtracting the target's ratio removes the effect of anatomy that itself has a direction.
* In the backward pass, E_across(r) is a constant. Otherwise, new texture across the streaks would
  lower the term as much as removing them does, and raise the reconstruction loss less.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from banding_removal.metrics.filters import streak_filter
from banding_removal.metrics.low_signal import BORDER, inner_regions, unit_of_slices
from banding_removal.metrics.streaks import MIN_PIXELS

# Pixels averaged along a streak; not the metric's 9, so that the metric stays independent.
LENGTHS = (5, 13)
MARGIN = max(LENGTHS) // 2
ROUNDED = 0.1  # h: 0.4 dB


def streak_term(
    image: Tensor, target: Tensor, data_range: Tensor, *, below: float, background: float
) -> Tensor:
    """Mean of the rounded |D + m| (natural logarithms) over box lengths, regions and slices.

    A region with fewer than 200 pixels in a slice does not count. If none counts, the term is 0,
    with a gradient of 0.

    Args:
        image: reconstruction, not yet upright: real (B, 1, h, w), phase encoding along w.
        target: like `image`, in the same orientation.
        data_range: (B,), the largest value of each volume.
        below: m, in natural logarithms.
        background: weight of the background, 0 to 1; anatomy has the rest.

    Returns:
        A scalar; without banding (D = 0), it is sqrt(m^2 + h^2) - h.
    """
    if min(image.shape[-2:]) <= 2 * MARGIN:
        return 0 * image.sum()
    scale = unit_of_slices(target[:, 0], data_range)[:, None, None]
    reference = target[:, 0] / scale
    _, *regions = inner_regions(reference.double())
    # (region, B, h - 2 MARGIN, w - 2 MARGIN): where the longest filter fits
    masks = F.pad(torch.stack(regions).to(image.dtype), (BORDER - MARGIN,) * 4)
    pixels = masks.sum((-2, -1))  # (region, B), as all below
    h = image.new_full((), ROUNDED)  # made there: copying a number would wait for a GPU
    rounded = torch.zeros_like(pixels)
    for length in LENGTHS:
        along, across = _log_energies(image[:, 0] / scale, length, masks, pixels)
        along_t, across_t = _log_energies(reference, length, masks, pixels)
        difference = along - across.detach() - (along_t - across_t)
        rounded = rounded + (torch.hypot(difference + below, h) - h) / len(LENGTHS)
    counts = pixels >= MIN_PIXELS
    of_background, of_anatomy = counts.to(image.dtype)
    weights = torch.stack([background * of_background, (1 - background) * of_anatomy])
    return (weights * torch.where(counts, rounded, 0.0)).sum() / weights.sum().clamp(min=1e-9)


def _log_energies(
    image: Tensor, length: int, masks: Tensor, pixels: Tensor
) -> tuple[Tensor, Tensor]:
    """Log of E_along and of E_across, (region, B) each; 0 where there are no pixels.

    Args:
        image: (B, h, w), divided by the unit of its slice (`unit_of_slices`).
        length: of the box, in pixels.
        masks: 0 or 1, (region, B, h - 2 MARGIN, w - 2 MARGIN).
        pixels: number of ones in each, (region, B).
    """

    def log_energy(x: Tensor, masks: Tensor) -> Tensor:
        energy = streak_filter(x, length, MARGIN).square()
        mean = (energy * masks).sum((-2, -1)) / pixels.clamp(min=1)
        return torch.where(mean > 0, torch.where(mean > 0, mean, 1.0).log(), 0.0)

    return log_energy(image, masks), log_energy(image.mT, masks.mT)
