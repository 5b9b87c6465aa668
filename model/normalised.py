"""Convolution and instance norm in one, keeping a single tensor for the backward pass.

A U-Net of Conv2d, InstanceNorm2d and ReLU modules keeps the output of each of them. All but one can
be made again from the normalised values before the ReLU, by passes that cost little beside a
convolution: so only these are kept, and each next layer begins with the ReLU (and the pooling or
the upsampling) of what it reads.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

EPSILON = 1e-5  # added to the variance, as by InstanceNorm2d
# oneDNN's weight gradient in bfloat16 takes longer than in float32 below this width.
NARROW = 32

# From the layers that are read to the inputs of the convolution.
Gather = Callable[..., tuple[Tensor, ...]]


def convolve(gather: Gather, weight: Tensor, bias: Tensor, *layers: Tensor) -> Tensor:
    """Convolution of the concatenated `gather(*layers)`, stride 1, size kept: real (B, out, H, W).

    The inputs are made once more in the backward pass: `gather` must give the same twice. Several
    inputs are convolved one by one with their part of the weight, without being concatenated.
    Arithmetic and result are in the inputs' type, whichever the weight's is. Differentiable once.

    Args:
        gather: cheap function of the layers; inputs (B, in_i, H, W).
        weight: real (out, sum of in_i, k, k), k odd.
        bias: real (out,).
        layers: real (B, ., ., .).
    """
    result: Tensor = _Convolution.apply(gather, False, weight, bias, *layers)
    return result


def convolve_and_normalise(gather: Gather, layer: nn.Conv2d, *layers: Tensor) -> Tensor:
    """`convolve`, then each channel minus its mean over its standard deviation (biased).

    The mean takes the layer's bias out again: it is not added, and its gradient is zero.
    """
    result: Tensor = _Convolution.apply(gather, True, layer.weight, layer.bias, *layers)
    return result


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gather: Gather, normalised: bool, weight: Tensor, bias: Tensor, *layers: Tensor
    ) -> Tensor:
        inputs = gather(*layers)
        parts = _split(weight.to(inputs[0].dtype), inputs)
        padding = weight.shape[-1] // 2
        first_bias = None if normalised else bias.to(inputs[0].dtype)
        y = F.conv2d(inputs[0], parts[0], first_bias, padding=padding)
        for x, part in zip(inputs[1:], parts[1:], strict=True):
            y += F.conv2d(x, part, padding=padding)
        ctx.gather, ctx.normalised = gather, normalised
        if normalised:
            y, inverse_std = _standardise(y)
            ctx.save_for_backward(weight, bias, y, inverse_std, *layers)
        else:
            ctx.save_for_backward(weight, bias, None, None, *layers)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, y, inverse_std, *layers = ctx.saved_tensors
        if ctx.normalised:
            gradient = _standardise_backward(gradient, y, inverse_std)
            by_bias = torch.zeros_like(bias)
        else:
            by_bias = gradient.sum((0, 2, 3), dtype=bias.dtype)
        leaves = [
            layer.detach().requires_grad_(needed)
            for layer, needed in zip(layers, ctx.needs_input_grad[4:], strict=True)
        ]
        with torch.enable_grad():
            inputs = ctx.gather(*leaves)
        by_inputs, by_parts = [], []
        for x, part in zip(inputs, _split(weight.to(gradient.dtype), inputs), strict=True):
            by_input, by_part = _convolution_backward(gradient, x, part)
            by_parts.append(by_part)
            if by_input is not None:
                by_inputs.append((x, by_input))
        by_weight = torch.cat(by_parts, dim=1).to(weight.dtype)
        reached = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(
            torch.autograd.grad(
                [x for x, _ in by_inputs], reached, [gradient for _, gradient in by_inputs]
            )
            if reached
            else ()
        )
        by_layers = [next(found) if leaf.requires_grad else None for leaf in leaves]
        return None, None, by_weight, by_bias, *by_layers


def _split(weight: Tensor, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """The part of the weight (out, in, k, k) that each of the concatenated inputs meets."""
    parts = weight.split([x.shape[1] for x in inputs], dim=1)
    return [part.contiguous(memory_format=torch.channels_last) for part in parts]


def _convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor | None, Tensor]:
    """Gradients of a convolution with respect to its input, where it has one, and its weight."""
    on_cpu = gradient.device.type == "cpu"
    if on_cpu and gradient.dtype == torch.bfloat16 and gradient.shape[1] < NARROW:
        by_input, _ = _both_gradients(gradient, x, weight, (x.requires_grad, False))
        _, by_weight = _both_gradients(gradient.float(), x.float(), weight.float(), (False, True))
    else:
        by_input, by_weight = _both_gradients(gradient, x, weight, (x.requires_grad, True))
    assert by_weight is not None
    return by_input, by_weight


def _both_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    padding = [size // 2 for size in weight.shape[2:]]
    by_input, by_weight, _ = torch.ops.aten.convolution_backward(
        gradient, x.detach(), weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1,
        [*wanted, False],
    )  # fmt: skip
    return by_input, by_weight


def _standardise(z: Tensor) -> tuple[Tensor, Tensor]:
    """Instance norm in float32 at least; the values in the type of `z`, which is overwritten.

    In passes of its own: PyTorch's norms are several times slower with channels last on CPUs.
    """
    dtype = z.dtype
    z = z.to(torch.promote_types(dtype, torch.float32))
    z -= _along_row(_channel_means(z), z)
    inverse_std = (_channel_means(z.square()) + EPSILON).rsqrt()
    z *= _along_row(inverse_std, z)
    return z.to(dtype), inverse_std


def _standardise_backward(gradient: Tensor, y: Tensor, inverse_std: Tensor) -> Tensor:
    """(g - mean(g) - y mean(g y)) / std of each channel."""
    dtype = gradient.dtype
    gradient, y = gradient.to(inverse_std.dtype), y.to(inverse_std.dtype)
    constant = -inverse_std * _channel_means(gradient)
    slope = -inverse_std * _channel_means(gradient * y)
    result = torch.addcmul(_along_row(constant, y), y, _along_row(slope, y))
    result.addcmul_(gradient, _along_row(inverse_std, y))
    return result.to(dtype)


def _channel_means(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 1, 1): with channels last, over rows first, which needs no strides."""
    batch, chans, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(batch, height, width * chans).mean(1)
    return rows.view(batch, width, chans).mean(1)[:, :, None, None]


def _along_row(values: Tensor, like: Tensor) -> Tensor:
    """(B, C, 1, 1) written out along a row, (B, C, 1, W) with channels last.

    Broadcasting of a few channels alone is up to ten times slower on CPUs.
    """
    return values.expand(-1, -1, 1, like.shape[-1]).contiguous(memory_format=torch.channels_last)
