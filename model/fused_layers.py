"""Convolution and instance norm that keep little for the backward pass.

A U-Net of `nn.Conv2d`, `nn.InstanceNorm2d`, `nn.ReLU` and so on keeps the output of every one of
them. Here only the output of each norm is kept. All that lies between a norm and the next
convolution (ReLU, dropout, pooling, upsampling, concatenation) is cheap, so the convolution takes
it as a `Lazy` input: it is computed in the forward pass, dropped, and computed once more in the
backward pass. `model/layers.py` puts these functions beside PyTorch's layers, and a test holds the
two to each other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

NARROW = 8  # channels below which PyTorch's batch norm, with channels last, is slow on a CPU
EPSILON = 1e-5  # added to the variance, as by InstanceNorm2d


def _unchanged(*kept: Tensor) -> tuple[Tensor, ...]:
    return kept


@dataclass(frozen=True)
class Lazy:
    """A tensor that is computed where it is read: the concatenation of `make(*kept)` (channels).

    Attributes:
        kept: tensors (B, ., ., .) that stay in memory until the backward pass.
        make: from these to one or several tensors (B, chans_i, H, W); cheap, and the same when
            called twice. It must not hold a large tensor itself.
    """

    kept: tuple[Tensor, ...]
    make: Callable[..., tuple[Tensor, ...]] = _unchanged


def convolve(x: Lazy, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolution with stride 1 that keeps the size, (B, in, H, W) -> (B, out, H, W).

    Only `x.kept` and the weight are saved for the backward pass. Arithmetic and result are in the
    dtype of `x`, whatever that of the weight. Differentiable once.

    Args:
        x: the input, of `in` channels in all.
        weight: real (out, in, k, k), k odd.
        bias: real (out,).
    """
    result: Tensor = _Convolve.apply(x.make, weight, bias, *x.kept)
    return result


def normalise(z: Tensor, bias: Tensor | None = None) -> Tensor:
    """Instance norm of z + bias, (B, C, H, W) -> the same shape; only the result is kept.

    y = (z - mean z) / s of each channel, with s^2 = var z + EPSILON (the biased variance). The mean
    takes the bias out again: it is not added and its gradient is zero.

    A change dz changes s by ds = mean(y dz), and therefore y by

        dy = (dz - mean dz - y mean(y dz)) / s.

    This linear map is its own transpose, so with g the gradient of the loss by y, that by z is

        (g - mean g - y mean(y g)) / s.

    Means and variances are computed in float32 at least. Differentiable once.
    """
    result: Tensor = _Normalise.apply(z, bias)
    return result


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        make: Callable[..., tuple[Tensor, ...]],
        weight: Tensor,
        bias: Tensor | None,
        *kept: Tensor,
    ) -> Tensor:
        inputs = make(*kept)
        dtype, padding = inputs[0].dtype, weight.shape[-1] // 2
        # Each input meets its part of the weight: 7 to 14 % faster than concatenating them.
        first, *others = _split(weight.to(dtype), inputs)
        z = F.conv2d(inputs[0], first, None if bias is None else bias.to(dtype), padding=padding)
        for x, part in zip(inputs[1:], others, strict=True):
            z += F.conv2d(x, part, padding=padding)
        ctx.make = make
        ctx.save_for_backward(weight, bias, *kept)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, *kept = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        kept = [x.detach().requires_grad_(n) for x, n in zip(kept, needed, strict=True)]
        with torch.enable_grad():
            inputs = ctx.make(*kept)
        parts = _split(weight.to(gradient.dtype), inputs)
        by_inputs, by_parts = zip(
            *(
                _convolution_backward(gradient, x, part)
                for x, part in zip(inputs, parts, strict=True)
            ),
            strict=True,
        )
        by_weight = torch.cat(by_parts, dim=1).to(weight.dtype)
        by_bias = None if bias is None else gradient.sum((0, 2, 3), dtype=bias.dtype)
        found: Sequence[Tensor] = ()
        if any(needed):
            found = torch.autograd.grad(
                [x for x in inputs if x.requires_grad],
                [x for x in kept if x.requires_grad],
                [by_input for by_input in by_inputs if by_input is not None],
            )
        by_kept = iter(found)
        return None, by_weight, by_bias, *(next(by_kept) if n else None for n in needed)


def _split(weight: Tensor, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """The part of the weight (out, in, k, k) that each of the concatenated inputs meets."""
    parts: Sequence[Tensor] = weight.split([x.shape[1] for x in inputs], dim=1)
    if _is_channels_last(inputs[0]):
        parts = [part.contiguous(memory_format=torch.channels_last) for part in parts]
    return parts


def _convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor | None, Tensor]:
    """Gradients of a convolution by its input, where that needs one, and by its weight."""
    padding = [weight.shape[-1] // 2] * 2
    by_input, by_weight, _ = torch.ops.aten.convolution_backward(
        gradient, x.detach(), weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1,
        [x.requires_grad, True, False],
    )  # fmt: skip
    return by_input, by_weight


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, bias: Tensor | None) -> Tensor:
        if _is_channels_last(z):
            y, inverse_std = _normalise_rows(z)
        else:
            y, _, inverse_std = torch.native_batch_norm(
                _as_one_image(z), None, None, None, None, True, 0.0, EPSILON
            )
            y, inverse_std = y.view(z.shape), inverse_std.view(z.shape[:2])
        ctx.save_for_backward(y, inverse_std, bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        y, inverse_std, bias = ctx.saved_tensors
        if _is_channels_last(y) and y.shape[1] < NARROW and y.device.type == "cpu":
            by_z = _backward_of_rows(gradient, y, inverse_std)
        elif _is_channels_last(y):
            gradient = gradient.contiguous(memory_format=torch.channels_last)
            images = zip(gradient.split(1), y.split(1), inverse_std, strict=True)
            by_image = [_batch_norm_backward(*image) for image in images]
            by_z = by_image[0] if len(by_image) == 1 else torch.cat(by_image)  # cat would copy one
        else:
            by_z = _batch_norm_backward(
                _as_one_image(gradient), _as_one_image(y), inverse_std.flatten()
            ).view(y.shape)
        return by_z, None if bias is None else torch.zeros_like(bias)


def _normalise_rows(z: Tensor) -> tuple[Tensor, Tensor]:
    """Result and 1 / s of `normalise`, (B, C, H, W) with channels last -> the same and (B, C).

    PyTorch's own norm is as fast, but on a CPU it sums a channel's values one after the other in
    float32, which is wrong by 3e-5 at 640 x 368. Sums along columns first are wrong by 5e-8.
    """
    chans, width = z.shape[1], z.shape[3]
    rows = _rows(z)
    rows = rows - _along_row(_channel_means(rows, chans), width)
    # One image at a time: the squares of all would be another tensor as large as the result.
    variance = torch.cat([_channel_means(image.square(), chans) for image in rows.split(1)])
    inverse_std = (variance + EPSILON).rsqrt()
    rows *= _along_row(inverse_std, width)
    return _from_rows(rows, z), inverse_std


def _backward_of_rows(gradient: Tensor, y: Tensor, inverse_std: Tensor) -> Tensor:
    """The gradient of `normalise` by z, (B, C, H, W) with channels last, from g, y and 1 / s."""
    chans, width = y.shape[1], y.shape[3]
    gradient_rows, y_rows = _rows(gradient), _rows(y)
    mean = _channel_means(gradient_rows, chans)
    mean_product = _channel_means(y_rows * gradient_rows, chans)
    by_z = torch.addcmul(
        _along_row(-mean * inverse_std, width),
        y_rows,
        _along_row(-mean_product * inverse_std, width),
    ).addcmul_(gradient_rows, _along_row(inverse_std, width))
    return _from_rows(by_z, y)


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W * C), in float32 at least."""
    rows = x.permute(0, 2, 3, 1).reshape(len(x), x.shape[2], -1)
    return rows.to(torch.promote_types(x.dtype, torch.float32))


def _from_rows(rows: Tensor, like: Tensor) -> Tensor:
    """(B, H, W * C) -> (B, C, H, W), channels last, with the shape and dtype of `like`."""
    batch, chans, height, width = like.shape
    return rows.to(like.dtype).view(batch, height, width, chans).permute(0, 3, 1, 2)


def _channel_means(rows: Tensor, chans: int) -> Tensor:
    """Means of rows (B, H, W * C), as (B, C)."""
    return rows.sum(1).view(len(rows), -1, chans).mean(1) / rows.shape[1]


def _along_row(values: Tensor, width: int) -> Tensor:
    """(B, C) -> (B, 1, W * C). Broadcasting a few channels alone is up to ten times slower."""
    return values.repeat(1, width)[:, None]


def _batch_norm_backward(gradient: Tensor, y: Tensor, inverse_std: Tensor) -> Tensor:
    """The gradient of `normalise` by z: as that of a batch norm of y, times inverse_std.

    (1, C, H, W), (1, C, H, W), (C,) -> (1, C, H, W). The mean of y is 0 and its deviation 1.
    """
    by_z: Tensor = torch.ops.aten.native_batch_norm_backward(
        gradient, y, inverse_std, None, None, torch.zeros_like(inverse_std),
        torch.ones_like(inverse_std), True, EPSILON, [True, False, False],
    )[0]  # fmt: skip
    return by_z


def _as_one_image(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (1, B * C, H, W): its batch norm is the instance norm of x."""
    return x.reshape(1, -1, *x.shape[2:])


def _is_channels_last(x: Tensor) -> bool:
    return x.stride(1) == 1
