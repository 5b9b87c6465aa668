"""What the adversary sees of an image, and what its gradient may change in it."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from banding_removal.metrics.low_signal_view import low_signal_view

View = Literal["image", "low_signal"]
Change = Literal["everything", "streaks"]


def upright(image: Tensor, rotated: Tensor) -> Tensor:
    """Images (B, 1, h, w) with upright anatomy: transposed back where `rotated` (B,) is 1.

    Raises:
        ValueError: the images are not square and only some of them are transposed.
    """
    turned = rotated.bool()
    if image.shape[-2] == image.shape[-1]:  # without waiting for a GPU to say what is turned
        return torch.where(turned[:, None, None, None], image.swapaxes(-2, -1), image)
    if turned.all():
        return image.swapaxes(-2, -1)
    if turned.any():
        raise ValueError(f"both orientations in one batch of {tuple(image.shape[-2:])} images")
    return image


def adversary_input(image: Tensor, rotated: Tensor, view: View = "image") -> Tensor:
    """What the adversary sees: upright, three equal channels, mean 0 and standard deviation 1.

    Real (B, 1, h, w) -> (B, 3, h, w). The standard deviation is the unbiased one over all 3 h w
    values of a sample. A constant image becomes zero.

    Args:
        image: reconstruction as the network made it (transposed where rotated).
        rotated: (B,), 1 where the slice was transposed before undersampling.
        view: the whole `image`, as published, or its low-signal texture (`low_signal_view`).
    """
    x = upright(image, rotated)
    if view == "low_signal":
        x = low_signal_view(x)
    x = x.expand(-1, 3, -1, -1)
    var, mean = torch.var_mean(x, dim=(1, 2, 3), keepdim=True)
    # The root comes after `where`: its gradient at 0 is infinite.
    return (x - mean) / torch.where(var > 0, var, 1.0).sqrt()


def only_streaks(image: Tensor) -> Tensor:
    """The identity, with a gradient that is filtered to streaks along the last axis.

    The filter keeps the frequencies (cycles per pixel) that are higher along readout (h) than along
    phase encode (w); banding lies there. New texture across the streaks would confuse an adversary
    as well as removing them does; with this filter, its gradient can only change the streaks.

    Args:
        image: reconstruction as the network made it, real (B, 1, h, w).
    """
    result: Tensor = _OnlyStreaks.apply(image)
    return result


class _OnlyStreaks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor) -> Tensor:  # noqa: ARG004
        return image.view_as(image)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        height, width = gradient.shape[-2:]
        along_readout = torch.fft.fftfreq(height, device=gradient.device).abs()[:, None]
        along_phase_encode = torch.fft.rfftfreq(width, device=gradient.device)
        kept = along_readout > along_phase_encode
        return torch.fft.irfft2(torch.fft.rfft2(gradient) * kept, s=(height, width))
