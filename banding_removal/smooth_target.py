"""A target without the part of its noise that makes banding.

Where signal is low a predictor gives back what is known of the target's noise: that of the measured
phase-encode columns, which is fine along readout and coarse along phase encode. These are the
streaks. The losses reward them, since the noise is in the target, too. So the target is smoothed
there, across the streaks that there would be, by less than a pixel: a predictor that comes as near
to it as it can has no streaks to give, and nothing is added when it reconstructs.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from banding_removal.low_signal import BLUR, LOW_SIGNAL, gaussian_blur, unit_of_slices

FADE = 0.1  # of q: from all of it at the low-signal limit to none so much above it


def smooth_target(target: Tensor, data_range: Tensor, sigma: float) -> Tensor:
    """The target, Gaussian along readout where its surroundings are dark.

    All of it where the target blurred by 2 pixels is below 0.3 q, as in the regions that banding is
    measured in, fading out above.

    Args:
        target: real (B, 1, h, w), phase encoding along w.
        data_range: (B,), the largest value of each volume.
        sigma: standard deviation of the Gaussian in pixels.
    """
    q = unit_of_slices(target[:, 0], data_range)[:, None, None]
    level = gaussian_blur(target[:, 0] / q, BLUR)[:, None]
    part = ((LOW_SIGNAL + FADE - level) / FADE).clamp(0, 1)
    radius = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=target.dtype, device=target.device)
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (weights / weights.sum()).view(1, 1, -1, 1)
    smooth = F.conv2d(F.pad(target, (0, 0, radius, radius), mode="replicate"), kernel)
    return torch.lerp(target, smooth, part)
