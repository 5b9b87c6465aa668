"""The reconstruction loss, (1 - SSIM) + weight * L1."""

import torch
from torch import Tensor
from torch.nn import functional as F

from banding_removal.data.operators import crop_to_smaller

WINDOW = 7
# 1/49 as a float32 window holds it, in every precision: the published loss, to the last digit.
WINDOW_WEIGHT = float(torch.tensor(1 / WINDOW**2, dtype=torch.float32))
K1, K2 = 0.01, 0.03


def ssim(image: Tensor, reference: Tensor, data_range: Tensor) -> Tensor:
    """Structural similarity with a uniform 7x7 window, mean over the valid region.

    Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity" (2004),
    eq. 13, with k1 = 0.01, k2 = 0.03 and the sample covariance (factor 49/48), as scikit-image's
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


def reconstruction_loss(
    prediction: Tensor, target: Tensor, data_range: Tensor, l1_weight: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Loss (1 - SSIM) + l1_weight * L1, mean over the batch, and the SSIM in it.

    Both images, real (B, 1, H, W) and (B, 1, h, w), are centre-cropped to the smaller of the two
    sizes; `data_range` is (B,). L1 is in the data's own unit, as in the paper's runs.
    """
    prediction, target = crop_to_smaller(prediction, target)
    similarity = ssim(prediction, target, data_range).mean()
    return 1 - similarity + l1_weight * F.l1_loss(prediction, target), similarity.detach()


def finite(*values: Tensor) -> bool:
    """Whether all values are finite (one transfer from the device)."""
    return bool(torch.stack([value.isfinite().all() for value in values]).all())
