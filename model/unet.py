"""The complex U-Net of one cascade: normalised, padded, on two real channels."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from banding_removal.model.fused_layers import Gather, convolve, convolve_and_normalise

PAD_MULTIPLE = 16
AROUND = 6  # numbers per pixel that normalising and its reverse keep
SIGNED = ((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0))  # two channels, each with its negative


class ConvBlock(nn.Module):
    """Twice [3x3 convolution, instance norm, ReLU, dropout], without the last ReLU and dropout.

    Whoever reads the values begins with these two: see `model.normalised`.
    """

    def __init__(self, in_chans: int, out_chans: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_chans, out_chans, kernel_size=3, padding=1)
        self.second = nn.Conv2d(out_chans, out_chans, kernel_size=3, padding=1)
        self.dropout = dropout

    def forward(self, gather: Gather, *layers: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of `gather(*layers)`, the values (B, out, H, W) and the channels' factors of dropout."""
        x = convolve_and_normalise(gather, self.first, *layers)
        read = partial(_activated, self._factors(x))
        x = convolve_and_normalise(read, self.second, x)
        return x, self._factors(x)

    def _factors(self, x: Tensor) -> Tensor | None:
        """Of each channel, (B, out, 1, 1): 0 where it is dropped, else 1 / (1 - p)."""
        if self.dropout == 0 or not self.training:
            return None
        ones = x.new_ones((*x.shape[:2], 1, 1))
        return F.dropout(ones, self.dropout)


class UNet(nn.Module):
    """U-Net of Ronneberger et al. (2015) as fastMRI uses it, (B, 2, H, W) -> (B, 2, H, W).

    Widths are c, 2c, 4c, ... down, as wide at the bottom as in the last of these, and back;
    at the end 1x1 convolutions c -> c/2 -> 2 -> 2 without a non-linearity between them.

    Under autocast all but these 1x1 convolutions has the lower precision; means and variances are
    float32.

    Args:
        chans: width c of the first block; even.
        pools: number of 2x2 max-poolings, at least 1.
        dropout: probability of dropping a channel after each activation.
    """

    def __init__(self, chans: int, pools: int, dropout: float = 0.0) -> None:
        super().__init__()
        if chans < 2 or chans % 2 or pools < 1:
            raise ValueError(f"U-Net needs an even width and a pooling, got {chans=}, {pools=}")
        widths = [chans * 2**level for level in range(pools)]
        self.down = nn.ModuleList(
            ConvBlock(w_in, w_out, dropout)
            for w_in, w_out in zip([2, *widths[:-1]], widths, strict=True)
        )
        self.bottom = ConvBlock(widths[-1], widths[-1], dropout)
        # Each block narrows to the width of the skip above it; the topmost one keeps c.
        self.up = nn.ModuleList(
            ConvBlock(2 * w_in, w_out, dropout)
            for w_in, w_out in zip(widths[::-1], [*widths[-2::-1], chans], strict=True)
        )
        self.head = nn.Sequential(
            nn.Conv2d(chans, chans // 2, kernel_size=1),
            nn.Conv2d(chans // 2, 2, kernel_size=1),
            nn.Conv2d(2, 2, kernel_size=1),
        )

    @torch.no_grad()
    def start_as_identity(self) -> None:
        """Set weights so that what comes in comes out, up to a factor; all else may be learnt.

        The two channels and their negatives pass the first block, its skip, the last block and the
        head: x = relu(x) - relu(-x). Other channels keep their weights, unread by these.

        Raises:
            ValueError: there are fewer than four channels.
        """
        top, last = self.down[0], self.up[-1]
        assert isinstance(top, ConvBlock) and isinstance(last, ConvBlock)
        if top.first.out_channels < len(SIGNED):
            raise ValueError(f"no identity through {top.first.out_channels} channels")
        signed = torch.tensor(SIGNED)
        again = signed @ signed.T
        _start_as(top.first, signed)
        _start_as(top.second, again)
        _start_as(last.first, again, begin=last.first.in_channels // 2)  # of the skip
        _start_as(last.second, again)
        for layer, matrix in zip(self.head, (signed.T, torch.eye(2), torch.eye(2)), strict=True):
            assert isinstance(layer, nn.Conv2d)
            _start_as(layer, matrix)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2, H, W) -> (B, 2, H, W) of the same type, any H and W of at least 2^pools."""
        exact = x.dtype
        device = x.device.type
        if exact == torch.float32 and torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        x = x.contiguous(memory_format=_layout(x))
        with torch.autocast(device, enabled=False):
            return self._forward(x, exact)

    def _forward(self, x: Tensor, result: torch.dtype) -> Tensor:
        skips: list[tuple[Tensor, Tensor | None]] = []
        read: Gather = _as_it_is
        for block in self.down:
            x, factors = block(read, x)
            skips.append((x, factors))
            read = partial(_pooled, factors)
        x, factors = self.bottom(read, x)
        for block in self.up:
            skip, skip_factors = skips.pop()
            x, factors = block(partial(_merged, factors, skip_factors), x, skip)
        return convolve(partial(_activated, factors, dtype=result), *self._single_head(), x)

    def _single_head(self) -> tuple[Tensor, Tensor]:
        """Weight (2, c, 1, 1) and bias (2,) of the head: its convolutions are one linear map."""
        (weight, bias), *others = [
            (layer.weight.flatten(1), layer.bias)
            for layer in self.head
            if isinstance(layer, nn.Conv2d) and layer.bias is not None
        ]
        for matrix, offset in others:
            weight, bias = matrix @ weight, matrix @ bias + offset
        return weight[:, :, None, None], bias

    def kept_values(self) -> float:
        """Numbers that a forward pass keeps for the backward pass, per pixel."""
        blocks = [
            *((block, level) for level, block in enumerate(self.down)),
            (self.bottom, len(self.down)),
            *((block, level) for level, block in enumerate(reversed(self.up))),
        ]
        kept = 2.0  # the input
        for block, level in blocks:
            assert isinstance(block, ConvBlock)
            kept += 2 * block.second.out_channels / 4**level
        return kept


def _layout(x: Tensor) -> torch.memory_format:
    """How the values of the network, whose input this is, lie in memory.

    Channels last on CPUs. On a GPU a step takes as long as its calls, of which there are a third
    without them: half the time (docs/speed.md). But float32 gradients then take twice the memory
    and no less time.
    """
    learns_in_float32 = torch.is_grad_enabled() and x.dtype != torch.bfloat16
    if x.device.type == "cpu" or learns_in_float32:
        return torch.channels_last
    return torch.contiguous_format


def _start_as(layer: nn.Conv2d, matrix: Tensor, begin: int = 0) -> None:
    """The first output channels as `matrix` makes them of the input channels from `begin` on."""
    rows, columns = matrix.shape
    center = layer.kernel_size[0] // 2
    layer.weight[:rows] = 0.0
    layer.weight[:rows, begin : begin + columns, center, center] = matrix
    assert layer.bias is not None
    layer.bias[:rows] = 0.0


def _as_it_is(x: Tensor) -> tuple[Tensor]:
    return (x,)


def _activated(
    factors: Tensor | None, x: Tensor, dtype: torch.dtype | None = None
) -> tuple[Tensor]:
    """ReLU and dropout."""
    x = F.relu(x)
    x = x if factors is None else x * factors
    return (x.to(dtype or x.dtype),)


def _pooled(factors: Tensor | None, x: Tensor) -> tuple[Tensor]:
    """2x2 max-pooling of the activated values: the ReLU and factors >= 0 may come after it."""
    return _activated(factors, F.max_pool2d(x, kernel_size=2))


def _merged(
    factors: Tensor | None, skip_factors: Tensor | None, x: Tensor, skip: Tensor
) -> tuple[Tensor, Tensor]:
    """[bilinear upsampling, skip]."""
    (low,) = _activated(factors, x)
    up = F.interpolate(low, size=skip.shape[-2:], mode="bilinear", align_corners=False)
    return up, *_activated(skip_factors, skip)


class ComplexUNet(nn.Module):
    """U-Net on a complex image, (B, H, W) complex -> (B, H, W) complex.

    The image becomes two real channels, is zero-padded to multiples of 16, and each channel is
    normalised by its mean and (unbiased) standard deviation over the *padded* image; both are
    undone afterwards. The statistics after the padding are the published code's choice.
    """

    def __init__(self, chans: int, pools: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.unet = UNet(chans, pools, dropout)

    def kept_bytes(self, height: int, width: int, itemsize: int) -> int:
        """Bytes that a forward pass of one image keeps for the backward pass, about.

        Args:
            height: of the image.
            width: of the image.
            itemsize: bytes of a number in the U-Net; around it, of float32.
        """
        pixels = (height + -height % PAD_MULTIPLE) * (width + -width % PAD_MULTIPLE)
        return int(pixels * (itemsize * self.unet.kept_values() + 4 * AROUND))

    def forward(self, image: Tensor) -> Tensor:
        """(B, H, W) complex64 or complex128, any size -> the same shape and dtype."""
        height, width = image.shape[-2:]
        x = torch.view_as_real(image).movedim(-1, 1)  # (B, 2, H, W), channels last
        top, bottom = _split_padding(height)
        left, right = _split_padding(width)
        x = F.pad(x, (left, right, top, bottom))
        mean, std = _channel_statistics(x)
        # A constant channel (an empty slice, a dead coil) is divided by 1 and comes back as it was:
        # no epsilon would suit data of any scale, and nothing of the network's own scale gets in.
        x = self.unet((x - mean) / torch.where(std > 0, std, 1.0)) * std + mean
        x = x[:, :, top : top + height, left : left + width]
        return torch.view_as_complex(x.movedim(1, -1).contiguous())


def _split_padding(size: int) -> tuple[int, int]:
    """Zeros before (floor of half) and after (ceil of half) that make `size` a multiple of 16."""
    missing = -size % PAD_MULTIPLE
    return missing // 2, missing - missing // 2


def _channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation over (H, W), (B, 2, H, W) -> two of (B, 2, 1, 1).

    The root is taken behind a `where`, since its gradient at 0 is infinite and would turn into NaN
    even where it is not used.
    """
    var, mean = torch.var_mean(x, dim=(-2, -1), keepdim=True)
    return mean, torch.where(var > 0, torch.where(var > 0, var, 1.0).sqrt(), 0.0)
