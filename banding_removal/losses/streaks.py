"""A direct loss against banding: streaks along phase encode, no stronger than texture across it.

The adversary of `losses.orientation` learns what distinguishes the two orientations; this term
writes down what is known of banding beforehand, and needs no second network.

With r the reconstruction and t the target, phase encoding along the last axis, E_along and E_across
the mean squares of the two filters of `metrics.streaks` in flat low-signal pixels:

    D = log E_along(r) / E_across(r) - log E_along(t) / E_across(t),      term = mean of |D + m|

over box lengths, and over background and anatomy separately, so that one cannot make up for the
other.

* |.| is rounded at zero, sqrt(x^2 + h^2) - h, where D is only the chance of few pixels. A square
  would not do: its pull fades before the streaks are gone.
* m asks for slightly fewer streaks than none, because the reconstruction loss pulls the other way
  and training ends in between.
* Background weighs less than anatomy: streaks leave it sooner, and with equal weights they stay in
  anatomy for longer (docs/results.md).
* The target's own ratio cancels anatomy.
* E_across(r) is a constant for the gradient. Otherwise texture written across the streaks would
  lower the term as well as their removal does, at less cost in the reconstruction loss.
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
        A scalar; sqrt(m^2 + h^2) - h where there is nothing to remove.
    """
    if min(image.shape[-2:]) <= 2 * MARGIN:
        return 0 * image.sum()
    scale = unit_of_slices(target[:, 0], data_range)[:, None, None]
    reference = target[:, 0] / scale
    _, *regions = inner_regions(reference.double())
    # (region, B, h - 2 MARGIN, w - 2 MARGIN): where the longest filter fits
    masks = F.pad(torch.stack(regions).to(image.dtype), (BORDER - MARGIN,) * 4)
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
        length: of the box, in pixels.
        masks: 0 or 1, (region, B, h - 2 MARGIN, w - 2 MARGIN).
        pixels: number of ones in each, (region, B).
    """

    def log_energy(x: Tensor, masks: Tensor) -> Tensor:
        energy = streak_filter(x, length, MARGIN).square()
        mean = (energy * masks).sum((-2, -1)) / pixels.clamp(min=1)
        return torch.where(mean > 0, torch.where(mean > 0, mean, 1.0).log(), 0.0)

    return log_energy(image, masks), log_energy(image.mT, masks.mT)
