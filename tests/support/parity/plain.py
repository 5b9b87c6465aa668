"""The predictor once more, as the paper's equations and nothing else: one slice, no fused parts."""

import torch
from torch import Tensor
from torch.nn import functional as F

from banding_removal.data.operators import expand, reduce, rss, to_image

Weights = dict[str, Tensor]  # a `Predictor`'s parameters by name


def plain_predictor(
    weights: Weights, kspace: Tensor, mask: Tensor, acs_lines: int, *, cascades: int, pools: int
) -> Tensor:
    """Masked k-space k (coil, H, W), mask M (W,) -> image (1, H, W).

    x <- x - lambda M (x - k) - F S U(sum over coils of conj(S) F^-1 x), beginning with x = k.
    """
    width = kspace.shape[-1]
    first = (width - acs_lines + 1) // 2
    center = torch.zeros(width).to(mask)
    center[first : first + acs_lines] = True
    maps = torch.stack(
        [
            _complex_unet(weights, "sensitivity.unet.unet.", image, pools)
            for image in to_image(kspace * center)
        ]
    )
    maps = maps / rss(maps)
    x = kspace
    for t in range(cascades):
        image = reduce(x, maps)[0]
        refinement = _complex_unet(weights, f"cascades.{t}.unet.unet.", image, pools)
        correction = weights[f"cascades.{t}.dc_weight"] * mask * (x - kspace)
        x = x - correction - expand(refinement[None], maps)
    return rss(to_image(x))


def _complex_unet(weights: Weights, prefix: str, image: Tensor, pools: int) -> Tensor:
    """Complex (H, W): zero-padded to multiples of 16, then normalised; both are undone."""
    height, width = image.shape
    top, left = (-height % 16) // 2, (-width % 16) // 2
    padded = torch.zeros(2, height + -height % 16, width + -width % 16, dtype=image.real.dtype)
    inside = (slice(None), slice(top, top + height), slice(left, left + width))
    padded[inside] = torch.stack([image.real, image.imag])
    mean, std = padded.mean((1, 2), keepdim=True), padded.std((1, 2), keepdim=True)
    refined = _unet(weights, prefix, ((padded - mean) / std)[None], pools)[0] * std + mean
    return torch.complex(*refined[inside])


def _unet(weights: Weights, prefix: str, x: Tensor, pools: int) -> Tensor:
    """U-Net, (1, 2, H, W) -> (1, 2, H, W)."""

    def conv(x: Tensor, name: str, padding: int) -> Tensor:
        key = f"{prefix}{name}"
        return F.conv2d(x, weights[f"{key}.weight"], weights[f"{key}.bias"], padding=padding)

    def block(x: Tensor, name: str) -> Tensor:
        for layer in ("first", "second"):
            x = F.relu(F.instance_norm(conv(x, f"{name}.{layer}", padding=1)))
        return x

    skips = []
    for level in range(pools):
        skips.append(block(x, f"down.{level}"))
        x = F.max_pool2d(skips[-1], 2)
    x = block(x, "bottom")
    for level in range(pools):
        skip = skips.pop()
        up = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
        x = block(torch.cat([up, skip], dim=1), f"up.{level}")
    for layer in range(3):
        x = conv(x, f"head.{layer}", padding=0)
    return x
