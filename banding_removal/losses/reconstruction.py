"""The reconstruction loss, (1 - SSIM) + weight * L1."""

from torch import Tensor
from torch.nn import functional as F

from banding_removal.data.operators import crop_to_smaller
from banding_removal.metrics.image_quality import ssim


def reconstruction_loss(
    prediction: Tensor, target: Tensor, data_range: Tensor, l1_weight: float = 0.01
) -> tuple[Tensor, Tensor]:
    """(1 - SSIM) + l1_weight * L1, mean over the batch.

    Args:
        prediction: real (B, 1, H, W); both images are centre-cropped to the smaller of each side.
        target: real (B, 1, h, w).
        data_range: (B,), the largest value of each volume, in the images' unit.
        l1_weight: of L1, which is in the images' own unit, as in the paper's runs.

    Returns:
        The loss and the SSIM in it (detached), both scalars.
    """
    prediction, target = crop_to_smaller(prediction, target)
    similarity = ssim(prediction, target, data_range).mean()
    return 1 - similarity + l1_weight * F.l1_loss(prediction, target), similarity.detach()
