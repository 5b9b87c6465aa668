"""Convolution and instance norm in one, keeping a single tensor for the backward pass.

A U-Net of Conv2d, InstanceNorm2d and ReLU modules keeps the output of each of them. All but one can
be made again from the normalised values before the ReLU, by passes that cost little beside a
convolution: so only these are kept, and each next layer begins with the ReLU (and the pooling or
the upsampling) of what it reads.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

EPSILON = 1e-5  # added to the variance, as by InstanceNorm2d
# Of a norm's passes on a CPU, that between two of them the values stay in its caches.
CPU_VALUES_AT_ONCE = 2**19
# oneDNN's weight gradient in bfloat16 takes twice as long on images of many pixels as on parts.
CPU_PIXELS_AT_ONCE = 2**16

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
        by_weight = by_parts[0] if len(by_parts) == 1 else torch.cat(by_parts, dim=1)
        reached = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(
            torch.autograd.grad(
                [x for x, _ in by_inputs], reached, [gradient for _, gradient in by_inputs]
            )
            if reached
            else ()
        )
        by_layers = [next(found) if leaf.requires_grad else None for leaf in leaves]
        return None, None, by_weight.to(weight.dtype), by_bias, *by_layers


def _split(weight: Tensor, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """The part of the weight (out, in, k, k) that each of the concatenated inputs meets."""
    parts: Sequence[Tensor] = weight.split([x.shape[1] for x in inputs], dim=1)
    if _channels_last(inputs[0]):
        parts = [part.contiguous(memory_format=torch.channels_last) for part in parts]
    return parts


def _convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor | None, Tensor]:
    """Gradients of a convolution with respect to its input, where it has one, and its weight."""
    height, width = x.shape[2:]
    parts = 1
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:
        parts = math.gcd(height, 2 ** (height * width // CPU_PIXELS_AT_ONCE).bit_length())
    if parts == 1:
        by_input, by_weight = _both_gradients(gradient, x, weight, (x.requires_grad, True))
    else:
        by_input, _ = _both_gradients(gradient, x, weight, (x.requires_grad, False))
        _, by_weight = _both_gradients(
            _strips(gradient, parts, 0),
            _strips(x, parts, weight.shape[-1] // 2),
            weight,
            (False, True),
        )
    assert by_weight is not None
    return by_input, by_weight


def _both_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    # Strips bring the rows around them along.
    rows = (gradient.shape[-2] + weight.shape[-2] - 1 - x.shape[-2]) // 2
    by_input, by_weight, _ = torch.ops.aten.convolution_backward(
        gradient, x.detach(), weight, None, [1, 1], [rows, weight.shape[-1] // 2], [1, 1], False,
        [0, 0], 1, [*wanted, False],
    )  # fmt: skip
    return by_input, by_weight


def _strips(x: Tensor, parts: int, around: int) -> Tensor:
    """(B, C, H, W) -> (B * parts, C, H / parts + 2 around, W), rows beyond the image being zero."""
    batch, chans, height, width = x.shape
    rows = height // parts
    padded = F.pad(x.detach(), (0, 0, around, around)).permute(0, 2, 3, 1)
    strips = padded.unfold(1, rows + 2 * around, rows)  # (B, parts, W, C, rows)
    strips = strips.permute(0, 1, 4, 2, 3).reshape(batch * parts, -1, width, chans)
    return strips.permute(0, 3, 1, 2)


def _channels_last(x: Tensor) -> bool:
    return x.stride(1) == 1


def _standardise(z: Tensor) -> tuple[Tensor, Tensor]:
    """Instance norm in float32 at least; the values in the type of `z`, which is overwritten.

    With channels last in passes of its own: PyTorch's norms are several times slower with these on
    CPUs. Else in one call, a batch being one image of as many channels.
    """
    if not _channels_last(z):
        batch, chans, height, width = z.shape
        one_image = z.reshape(1, batch * chans, height, width)
        y, _, inverse_std = torch.native_batch_norm(
            one_image, None, None, None, None, True, 0.0, EPSILON
        )
        return y.view(z.shape), inverse_std.view(batch, chans, 1, 1)
    z = z.contiguous(memory_format=torch.channels_last)
    dtype = torch.promote_types(z.dtype, torch.float32)
    in_place = z.dtype == dtype
    rows = _rows(z)
    parts = _parts(rows)
    mean = _channel_means([rows[:, part].sum(1, dtype=dtype) for part in parts], z)
    along = _along_row(mean, z)
    squares = []
    for part in parts:
        x = rows[:, part]
        difference = x.sub_(along) if in_place else x - along
        squares.append(difference.square().sum(1))
    inverse_std = (_channel_means(squares, z) + EPSILON).rsqrt()
    factor = _along_row(inverse_std, z)
    for part in parts:
        x = rows[:, part]
        if in_place:
            x.mul_(factor)
        else:
            x.copy_((x - along).mul_(factor))
    return z, inverse_std


def _standardise_backward(gradient: Tensor, y: Tensor, inverse_std: Tensor) -> Tensor:
    """(g - mean(g) - y mean(g y)) / std of each channel."""
    if not _channels_last(y):
        one_image = (1, -1, *y.shape[2:])
        # As the norm of y, whose mean is 0 and whose deviation 1, times a factor.
        factor = inverse_std.flatten()
        by_z, _, _ = torch.ops.aten.native_batch_norm_backward(
            gradient.reshape(one_image), y.view(one_image), factor, None, None,
            torch.zeros_like(factor), torch.ones_like(factor), True, EPSILON, [True, False, False],
        )  # fmt: skip
        return by_z.view(y.shape)
    dtype = inverse_std.dtype
    g_rows = _rows(gradient.contiguous(memory_format=torch.channels_last))
    y_rows = _rows(y)
    # In float32 nothing is gained by parts.
    parts = [slice(None)] if y.dtype == dtype else _parts(y_rows)
    sums, sums_with_y = [], []
    for part in parts:
        g = g_rows[:, part].to(dtype)
        sums.append(g.sum(1))
        sums_with_y.append((g * y_rows[:, part]).sum(1))
    constant = _along_row(-inverse_std * _channel_means(sums, y), y)
    slope = _along_row(-inverse_std * _channel_means(sums_with_y, y), y)
    factor = _along_row(inverse_std, y)
    changed = []
    for part in parts:
        x = torch.addcmul(constant, y_rows[:, part].to(dtype), slope)
        changed.append(x.addcmul_(g_rows[:, part].to(dtype), factor).to(y.dtype))
    batch, chans, height, width = y.shape
    rows = changed[0] if len(changed) == 1 else torch.cat(changed, dim=1)
    return rows.view(batch, height, width, chans).permute(0, 3, 1, 2)


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) with channels last as (B, H, W * C), the same memory."""
    batch, chans, height, width = x.shape
    return x.permute(0, 2, 3, 1).view(batch, height, width * chans)


def _parts(rows: Tensor) -> list[slice]:
    """Of the rows, as many at once as is good for the device."""
    batch, height, values = rows.shape
    at_once = height
    if rows.device.type == "cpu":
        at_once = max(1, CPU_VALUES_AT_ONCE // (batch * values))
    return [slice(first, first + at_once) for first in range(0, height, at_once)]


def _channel_means(sums: list[Tensor], like: Tensor) -> Tensor:
    """Sums over some of the rows, (B, W * C), -> means (B, C, 1, 1)."""
    batch, chans, height, width = like.shape
    means = torch.stack(sums).sum(0).view(batch, width, chans).mean(1) / height
    return means[:, :, None, None]


def _along_row(values: Tensor, like: Tensor) -> Tensor:
    """(B, C, 1, 1) written out along a row, (B, 1, W * C).

    Broadcasting of a few channels alone is up to ten times slower on CPUs.
    """
    along = values.expand(-1, -1, 1, like.shape[-1])
    return _rows(along.contiguous(memory_format=torch.channels_last))
