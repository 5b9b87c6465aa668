"""The low-signal view: dark texture at equal contrast, as in a window that is low enough for noise.

Banding is 1 or 2 % of an image's range. A reader sees it by lowering the window until bright tissue
saturates; a network that is given the image over its standard deviation hardly sees it. With x the
upright image, q its 99.5th percentile and blur_s a Gaussian of s pixels:

    G     = blur_2(x) / q                                  local signal
    w     = sigmoid((0.3 - G) / 0.04)                      1 where signal is low, 0 in bright tissue
    h     = x - blur_2(x)                                  texture
    level = sqrt(blur_4(w h^2) / (blur_4(w) + 0.001)) + 0.003 q
    view  = w h / level

All dark regions, air or anatomy, have the same contrast, and bright tissue fades to zero. The limit
of 0.3 q is the one that banding is measured with (`low_signal`).
"""

import torch
from torch import Tensor

from banding_removal.metrics.filters import gaussian_blur, percentile
from banding_removal.metrics.low_signal import BLUR, LOW_SIGNAL, PERCENTILE

LIMIT_WIDTH = 0.04  # of q: over which w falls at the signal limit
LEVEL_BLUR = 4.0  # pixels, over which the texture's local level is taken
LEAST_WEIGHT = 1e-3  # of w: below it, there is no low signal to take a level from
LEAST_LEVEL = 3e-3  # of q: texture below it is not amplified further


def low_signal_view(image: Tensor) -> Tensor:
    """The image's low-signal texture, at the same contrast everywhere.

    The weight w and the level are constants for the gradient: only a change of texture changes the
    view; making a region brighter or noisier does not.

    Args:
        image: real (B, 1, h, w), any unit. Half precision is computed in float32.

    Returns:
        (B, 1, h, w), float32 or float64, without unit: texture over its local level. The same for
        `a * image` with a > 0; for a transposed image, the transposed view; zeros for an empty one.
    """
    x = image[:, 0].to(torch.promote_types(image.dtype, torch.float32))
    with torch.no_grad():
        q = percentile(x.flatten(1), PERCENTILE)[:, None, None]
        unit = torch.where(q > 0, q, 1.0)
        blurred = gaussian_blur(x, BLUR)
        weight = torch.sigmoid((LOW_SIGNAL - blurred / unit) / LIMIT_WIDTH)
        energy = gaussian_blur(weight * ((x - blurred) / unit).square(), LEVEL_BLUR)
        share = gaussian_blur(weight, LEVEL_BLUR) + LEAST_WEIGHT
        factor = weight / (unit * ((energy / share).clamp(min=0).sqrt() + LEAST_LEVEL))
    return (factor * (x - gaussian_blur(x, BLUR)))[:, None]
