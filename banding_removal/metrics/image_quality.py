"""Image quality: NMSE, PSNR and SSIM of whole volumes, as fastMRI reports them; HFEN of slices."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LOG_SIZE, LOG_SIGMA = 15, 1.5  # pixels; Laplacian of Gaussian of the high-frequency error norm
WINDOW = 7
# 1/49 rounded to float32, in every precision: equals the published loss to the last digit.
WINDOW_WEIGHT = float(torch.tensor(1 / WINDOW**2, dtype=torch.float32))
K1, K2 = 0.01, 0.03


def ssim(image: Tensor, reference: Tensor, data_range: Tensor) -> Tensor:
    """Structural similarity with a uniform 7 x 7 window, mean over the valid region.

    Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity" (2004),
    eq. 13, with k1 = 0.01, k2 = 0.03 and the sample covariance (factor 49/48): scikit-image's
    default. Symmetric in its two images.

    Args:
        image: real (B, 1, H, W), H and W at least 7.
        reference: like `image`.
        data_range: positive (B,), the unit of the images.

    Returns:
        (B,), 1 for equal images.
    """
    scale = data_range.view(-1, 1, 1, 1)
    x, y = image / scale, reference / scale  # data range 1: values far from float32's smallest

    def local_mean(z: Tensor) -> Tensor:
        return F.avg_pool2d(z, WINDOW, stride=1, divisor_override=1) * WINDOW_WEIGHT

    sample = WINDOW**2 / (WINDOW**2 - 1)
    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x = sample * (local_mean(x * x) - mean_x * mean_x)
    var_y = sample * (local_mean(y * y) - mean_y * mean_y)
    cov = sample * (local_mean(x * y) - mean_x * mean_y)
    c1, c2 = K1**2, K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    structure = (2 * cov + c2) / (var_x + var_y + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Metrics of a slice or a volume; NMSE is NaN where the target is all zero."""

    nmse: float
    psnr: float  # dB
    ssim: float
    mse: float


@dataclass(kw_only=True)
class VolumeQuality:
    """Sums over the slices of one volume, from which its metrics follow.

    With t the target, x the reconstruction, L the data range of the volume:
    NMSE = sum (x - t)^2 / sum t^2, PSNR = 10 log10(L^2 / mean (x - t)^2), SSIM = mean over slices.
    Only sums are kept, so memory does not grow with the volume.
    """

    data_range: float
    error: float = 0.0
    energy: float = 0.0
    pixels: int = 0
    ssim: float = 0.0
    slices: int = 0

    def add(self, prediction: Tensor, target: Tensor, data_range: Tensor) -> Quality:
        """Add one slice, real (1, 1, h, w) each, data_range (1,); returns its own metrics."""
        x, t = prediction.double(), target.double()
        part = VolumeQuality(
            data_range=self.data_range,
            error=float((x - t).square().sum()),
            energy=float(t.square().sum()),
            pixels=t.numel(),
            ssim=float(ssim(x, t, data_range.double())),
            slices=1,
        )
        for name, value in vars(part).items():
            if name != "data_range":
                setattr(self, name, getattr(self, name) + value)
        return part.result()

    def result(self) -> Quality:
        """The metrics of all slices so far."""
        mse = self.error / self.pixels
        return Quality(
            nmse=self.error / self.energy if self.energy > 0 else math.nan,
            psnr=10 * math.log10(self.data_range**2 / mse) if mse > 0 else math.inf,
            ssim=self.ssim / self.slices,
            mse=mse,
        )


def hfen(prediction: Tensor, target: Tensor) -> Tensor:
    """High-frequency error norm, ||LoG * x - LoG * t||_2 / ||LoG * t||_2: sensitive to blur.

    LoG is a 15 x 15 Laplacian of Gaussian, sigma 1.5 pixels, that sums to zero. Ravishankar &
    Bresler, "MR Image Reconstruction from Highly Undersampled k-Space Data by Dictionary Learning"
    (2011); here without padding, so that a border of 7 pixels does not count.

    Args:
        prediction: real (B, 1, h, w), at least 15 x 15.
        target: like `prediction`.

    Returns:
        (B,) float64; NaN where the target has no texture.

    Raises:
        ValueError: shapes differ, are not (B, 1, h, w), or the images are smaller than the filter.
    """
    if prediction.shape != target.shape or target.ndim != 4 or target.shape[1] != 1:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must be "
            "(B, 1, h, w) of one shape"
        )
    if min(target.shape[-2:]) < LOG_SIZE:
        raise ValueError(f"images of {tuple(target.shape[-2:])} are smaller than {LOG_SIZE} pixels")
    x, t = prediction.double(), target.double()
    error = _edges(x - t).norm(dim=1)
    texture = _edges(t).norm(dim=1)
    return torch.where(texture > 0, error / texture, math.nan)


def _edges(image: Tensor) -> Tensor:
    """LoG * image, float64 (B, 1, h, w) -> (B, pixels): (r^2 - 2 s^2) / s^4 times a Gaussian."""
    offsets = torch.arange(LOG_SIZE, dtype=image.dtype, device=image.device) - LOG_SIZE // 2
    r2 = offsets[:, None] ** 2 + offsets**2
    gaussian = torch.exp(-r2 / (2 * LOG_SIGMA**2))
    kernel = (r2 - 2 * LOG_SIGMA**2) / LOG_SIGMA**4 * gaussian / gaussian.sum()
    kernel = kernel - kernel.mean()
    # A constant image gives exactly zero only if the constant is subtracted first.
    return F.conv2d(image - image[..., :1, :1], kernel[None, None]).flatten(1)
