"""Filters that metrics, losses and views share: Gaussian blur, streak filter, percentile."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian that is cut at 3 sigma (pixels); the border is repeated.

    Real (B, h, w) -> same shape and dtype.
    """
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    padded = F.pad(image[:, None], (radius,) * 4, mode="replicate")
    along_x = F.conv2d(padded, weights.view(1, 1, 1, -1))
    return F.conv2d(along_x, weights.view(1, 1, -1, 1))[:, 0]


def streak_filter(image: Tensor, length: int, margin: int) -> Tensor:
    """h_y * b_x * r: what is smooth along x (the last axis) and changes from row to row.

    b_x is the average over `length` pixels along x, h_y = [-1/2, 1, -1/2] / sqrt(3/2) along y,
    which has unit gain for white noise. Nothing is padded.

    Args:
        image: real (B, h, w) or (A, B, h, w); h and w more than `2 * margin`.
        length: odd, in pixels.
        margin: pixels left out at each border, at least `length // 2` and 1.

    Returns:
        (..., h - 2 margin, w - 2 margin).
    """
    cut = margin - length // 2
    rows = image[..., margin - 1 : image.shape[-2] - margin + 1, cut : image.shape[-1] - cut]
    smooth = F.avg_pool2d(rows, (1, length), stride=1)
    high = smooth[..., 1:-1, :] - (smooth[..., :-2, :] + smooth[..., 2:, :]) / 2
    return high / math.sqrt(1.5)


def percentile(values: Tensor, percent: float) -> Tensor:
    """Percentile with linear interpolation, (B, n) -> (B,); NaN where n is 0.

    `torch.quantile` refuses more than 16 million values, which a volume can have.
    """
    if values.shape[1] == 0:
        return values.new_full((len(values),), math.nan)
    ordered = values.sort(dim=1).values
    place = percent / 100 * (values.shape[1] - 1)
    below = math.floor(place)
    above = min(below + 1, values.shape[1] - 1)
    return torch.lerp(ordered[:, below], ordered[:, above], place - below)
