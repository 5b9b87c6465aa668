"""Simple remedies to compare with: noise that hides banding, and blur that weakens it."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, median_filter
from torch import Tensor

MEDIAN_WINDOW = 11  # pixels


def dithered(image: Tensor, scale: float, strength: float, seed: tuple[int, ...]) -> Tensor:
    """R + strength * q * sqrt(m / q) * n, cut at 0: noise that follows the local signal.

    m is the median of r in a window of 11 x 11 pixels, n is white Gaussian noise. The paper
    (Defazio et al. 2020, section 4) compares its method with dithering of this kind.

    Args:
        image: reconstruction r, real (h, w).
        scale: q, the 99.5th percentile of the volume's target.
        strength: standard deviation of the noise where the signal is q, as a fraction of q.
        seed: of the noise.
    """
    r: NDArray[np.float64] = image.double().cpu().numpy()
    level = np.maximum(median_filter(r, MEDIAN_WINDOW, mode="nearest"), 0)
    deviation = strength * np.sqrt(level * scale)
    noise = np.random.default_rng(seed).standard_normal(r.shape)
    return torch.from_numpy(np.maximum(r + deviation * noise, 0)).to(image)


def blurred_across(image: Tensor, sigma: float, *, phase_encode_axis: int) -> Tensor:
    """Blur an image along readout, across its streaks, with a Gaussian.

    Streaks of banding lie along phase encode and are one pixel thick.

    Args:
        image: reconstruction, real (h, w).
        sigma: standard deviation in pixels.
        phase_encode_axis: of the image, 0 or 1 (-1).

    Raises:
        ValueError: `sigma` is not positive and finite.
    """
    if not (sigma > 0 and math.isfinite(sigma)):
        raise ValueError(f"sigma must be positive, got {sigma}")
    readout = 1 - phase_encode_axis % 2
    r = image.double().cpu().numpy()
    return torch.from_numpy(gaussian_filter1d(r, sigma, axis=readout, mode="nearest")).to(image)
