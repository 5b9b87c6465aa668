"""The U-Net's layers, each in two forms: plain PyTorch, and fused for less memory.

Given a tensor, a function calls PyTorch's layer and returns a tensor; this form defines what the
function computes. Given a `Lazy`, it returns a `Lazy` of the same value, with a third of the memory
and, on a CPU, in less time (`model/fused_layers.py`). `begin` chooses the form for a whole U-Net.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from banding_removal.model.fused_layers import Lazy, convolve, normalise

Layer = Tensor | Lazy
FUSED_ON = ("cpu", "cuda")  # kinds of devices


def use_fused(x: Tensor) -> bool:
    """Whether a U-Net with this input runs fused; the one place that decides it."""
    return x.device.type in FUSED_ON


def begin(x: Tensor) -> Layer:
    """The input of a U-Net (B, chans, H, W), for fused layers where those are used."""
    return Lazy((x.contiguous(memory_format=memory_format(x)),)) if use_fused(x) else x


def memory_format(x: Tensor) -> torch.memory_format:
    """The memory format in which the fused layers work on this input.

    Channels last on CPUs, where a U-Net then takes 0.6 to 0.8 times as long. Usually not on GPUs: a
    GPU waits for the CPU that starts its operations; without channels last there are only a third
    as many, which takes half the time (docs/speed.md). Float32 gradients are an exception: without
    channels last, they take twice the memory and no less time.
    """
    trains_in_float32 = torch.is_grad_enabled() and x.dtype != torch.bfloat16
    if x.device.type == "cpu" or trains_in_float32:
        return torch.channels_last
    return torch.contiguous_format


def conv_norm(conv: nn.Conv2d, x: Layer) -> Layer:
    """Instance norm (not affine) of a convolution, (B, in, H, W) -> (B, out, H, W), in x's dtype.

    The plain form, like PyTorch's norm, refuses images of a single pixel.
    """
    if isinstance(x, Lazy):
        return Lazy((normalise(convolve(x, conv.weight), conv.bias),))
    bias = None if conv.bias is None else conv.bias.to(x.dtype)
    return F.instance_norm(F.conv2d(x, conv.weight.to(x.dtype), bias, padding=conv.padding))


def up_conv_norm(conv: nn.ConvTranspose2d, x: Layer) -> Layer:
    """Instance norm of a transposed convolution, (B, in, H, W) -> (B, out, 2 H, 2 W), in x's dtype.

    With kernel and stride 2, no two inputs meet in an output. The fused form therefore computes the
    four outputs of each pixel as channels, in a 1x1 convolution, and then puts them in place.
    """
    if isinstance(x, Lazy):
        matrix = conv.weight.permute(1, 2, 3, 0).flatten(0, 2)[:, :, None, None]  # (4 out, in)
        return Lazy((normalise(F.pixel_shuffle(convolve(x, matrix), 2)),))
    return F.instance_norm(F.conv_transpose2d(x, conv.weight.to(x.dtype), stride=2))


def relu(x: Layer) -> Layer:
    """ReLU."""
    return F.relu(x) if isinstance(x, Tensor) else _apply(F.relu, x)


def leaky_relu(x: Layer, slope: float) -> Layer:
    """Leaky ReLU: x where it is positive, else slope x."""
    function = partial(F.leaky_relu, negative_slope=slope)
    return function(x) if isinstance(x, Tensor) else _apply(function, x)


def dropout(x: Layer, p: float, training: bool) -> Layer:
    """Drop each channel of the output of `conv_norm` with probability p, in training."""
    if isinstance(x, Tensor):
        return F.dropout2d(x, p, training)
    if p == 0 or not training:
        return x
    # Drawn here, not where x is read, because the backward pass needs the same factors again.
    factors = F.dropout(x.kept[0].new_ones((*x.kept[0].shape[:2], 1, 1)), p)
    return _apply(partial(torch.mul, factors), x)


def max_pool(x: Layer) -> Layer:
    """2x2 max-pooling of a block's output, (B, C, H, W) -> (B, C, H // 2, W // 2).

    ReLU and dropout do not change which of two values is the larger one. The fused form therefore
    pools first, so that ReLU and dropout have only a quarter of the work.
    """
    if isinstance(x, Tensor):
        return F.max_pool2d(x, kernel_size=2)
    make = x.make
    return Lazy(x.kept, lambda kept: make(F.max_pool2d(kept, kernel_size=2)))


def average_pool(x: Layer) -> Layer:
    """2x2 average-pooling, (B, C, H, W) -> (B, C, H // 2, W // 2)."""
    function = partial(F.avg_pool2d, kernel_size=2)
    return function(x) if isinstance(x, Tensor) else _apply(function, x)


def up_and_concatenate(x: Layer, skip: Layer) -> Layer:
    """[x, skip] along the channels, x first upsampled to the skip's size (bilinear)."""
    return _concatenate(x, skip, _upsample)


def reflect_and_concatenate(x: Layer, skip: Layer) -> Layer:
    """[x, skip] along the channels; where x is a pixel smaller, its second-last one is repeated."""
    return _concatenate(x, skip, _reflect)


def _concatenate(x: Layer, skip: Layer, fit: Callable[[Tensor, Tensor], Tensor]) -> Layer:
    """[fit(x, skip), skip] along the channels."""
    if isinstance(x, Tensor) and isinstance(skip, Tensor):
        return torch.cat([fit(x, skip), skip], dim=1)
    assert isinstance(x, Lazy) and isinstance(skip, Lazy)
    make_x, make_skip = x.make, skip.make

    def make(kept_x: Tensor, kept_skip: Tensor) -> tuple[Tensor, Tensor]:
        (low,), (beside,) = make_x(kept_x), make_skip(kept_skip)
        return fit(low, beside), beside

    return Lazy((*x.kept, *skip.kept), make)


def pointwise(convs: nn.Sequential, x: Layer) -> Tensor:
    """1x1 convolutions one after the other, (B, in, H, W) -> (B, out, H, W) in their dtype.

    There is no activation between them, so they are one linear map; the fused form applies it in
    one convolution.
    """
    (weight, bias), *others = [
        (conv.weight.flatten(1), conv.bias)
        for conv in convs
        if isinstance(conv, nn.Conv2d) and conv.bias is not None
    ]
    if isinstance(x, Tensor):
        result: Tensor = convs(x.to(weight.dtype))
        return result
    for matrix, offset in others:
        weight, bias = matrix @ weight, matrix @ bias + offset
    dtype = weight.dtype
    return convolve(_apply(lambda x: x.to(dtype), x), weight[:, :, None, None], bias)


def _apply(function: Callable[[Tensor], Tensor], x: Lazy) -> Lazy:
    make = x.make  # so that the function below does not hold x, and with it x's stored tensors
    return Lazy(x.kept, lambda *kept: tuple(map(function, make(*kept))))


def _upsample(x: Tensor, skip: Tensor) -> Tensor:
    return F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)


def _reflect(x: Tensor, skip: Tensor) -> Tensor:
    below, right = (a - b for a, b in zip(skip.shape[-2:], x.shape[-2:], strict=True))
    return F.pad(x, (0, right, 0, below), mode="reflect") if below or right else x
