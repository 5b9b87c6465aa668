"""Where to look for banding: the darkest part of a slice that holds anatomy."""

from torch import Tensor
from torch.nn import functional as F

from banding_removal.metrics.low_signal import low_signal_regions

ZOOMED_PART = 0.4  # of height and width


def low_signal_part(target: Tensor, scale: float) -> tuple[slice, slice]:
    """Rows and columns of the part of a target with the most low-signal anatomy.

    If the target has no low-signal anatomy, the part with the most low-signal pixels.

    Args:
        target: real (h, w).
        scale: q, the 99.5th percentile of the volume's target.
    """
    size = [max(1, round(ZOOMED_PART * length)) for length in target.shape]
    regions = low_signal_regions(target, scale)
    # Dark tissue shows more than the background, however large that is.
    weight = regions.low_signal.double() + 1000 * regions.anatomy.double()
    counts = F.avg_pool2d(weight[None, None], size, stride=1)[0, 0]
    top, left = divmod(int(counts.argmax()), counts.shape[1])
    return slice(top, top + size[0]), slice(left, left + size[1])
