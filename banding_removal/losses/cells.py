"""How much each cell of an adversary's grid counts: by the low-signal pixels that it covers."""

import torch
from torch import Tensor
from torch.nn import functional as F

from banding_removal.metrics.filters import percentile
from banding_removal.metrics.low_signal import BORDER, inner_regions
from banding_removal.metrics.low_signal import PERCENTILE as UNIT_PERCENTILE


@torch.no_grad()
def cell_weights(image: Tensor, rows: int, columns: int, *, background: float) -> Tensor:
    """Weights of the cells, with a mean of 1 over each image that has low-signal pixels, or else 0.

    A weight is the share of a cell's pixels that are flat low-signal anatomy, plus that of
    background times `background`. Background is the larger part of most images, and there banding
    is easier to see and to remove; with equal weights, it would be over-corrected before anatomy is
    without banding.

    Args:
        image: upright, real (B, 1, h, w), any unit.
        rows: of the grid.
        columns: of the grid.
        background: weight of background; anatomy has 1.

    Returns:
        (B, 1, rows, columns), float32 or float64.
    """
    x = image[:, 0].to(torch.promote_types(image.dtype, torch.float32))
    q = percentile(x.flatten(1), UNIT_PERCENTILE)[:, None, None]
    _, air, anatomy = inner_regions(x / torch.where(q > 0, q, 1.0)).to(x.dtype)
    counted = F.pad(anatomy + background * air, (BORDER,) * 4)
    shares = F.adaptive_avg_pool2d(counted[:, None], (rows, columns))
    mean = shares.mean(dim=(1, 2, 3), keepdim=True)
    return shares / torch.where(mean > 0, mean, 1.0)
