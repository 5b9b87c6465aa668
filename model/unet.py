"""The complex U-Net of one cascade: padding and normalisation around a U-Net on two channels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from banding_removal.model.layers import (
    Layer,
    begin,
    conv_norm,
    dropout,
    max_pool,
    pointwise,
    relu,
    up_and_concatenate,
)

PAD_MULTIPLE = 16
SIGNED = ((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0))  # two channels, each with its negative


class ConvBlock(nn.Module):
    """Twice [3x3 convolution, instance norm, ReLU, dropout], (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, in_chans: int, out_chans: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_chans, out_chans, kernel_size=3, padding=1)
        self.second = nn.Conv2d(out_chans, out_chans, kernel_size=3, padding=1)
        self.dropout = dropout

    def forward(self, x: Layer) -> Layer:
        """(B, in, H, W) -> (B, out, H, W)."""
        for conv in (self.first, self.second):
            x = relu(conv_norm(conv, x))
            x = dropout(x, self.dropout, self.training)
        return x


class UNet(nn.Module):
    """U-Net of Ronneberger et al. (2015) as fastMRI uses it, (B, 2, H, W) -> (B, 2, H, W).

    On the way down, the widths are c, 2c, 4c, ...; the bottom has the last of these again, and on
    the way up they return to c. Then come 1x1 convolutions c -> c/2 -> 2 -> 2, with no activation
    between them.

    Args:
        chans: width c of the first block; even.
        pools: number of 2x2 max-poolings, at least 1.
        dropout: probability of dropping a channel after each ReLU.

    Raises:
        ValueError: `chans` is not even and positive, or there is no pooling.
    """

    def __init__(self, chans: int, pools: int, dropout: float = 0.0) -> None:
        super().__init__()
        if chans < 2 or chans % 2 or pools < 1:
            raise ValueError(
                f"a U-Net needs an even width and at least one pooling, got {chans=}, {pools=}"
            )
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

    def forward(self, image: Tensor) -> Tensor:
        """(B, 2, H, W) -> (B, 2, H, W), any H and W of at least 2^pools.

        The blocks compute in the dtype of `image`; the 1x1 convolutions and the result have the
        dtype of the weights.
        """
        x = begin(image)
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = max_pool(x)
        x = self.bottom(x)
        for block in self.up:
            x = block(up_and_concatenate(x, skips.pop()))
        return pointwise(self.head, x)

    @torch.no_grad()
    def start_as_identity(self) -> None:
        """Set weights so that the output is a multiple of the input; all weights can still learn.

        The two channels and their negatives pass through the first block, its skip connection, the
        last block and the 1x1 convolutions: x = relu(x) - relu(-x). All other channels keep their
        random weights, and these four ignore them.

        Raises:
            ValueError: there are fewer than four channels.
        """
        top, last = self.down[0], self.up[-1]
        assert isinstance(top, ConvBlock) and isinstance(last, ConvBlock)
        pass_through([top.first, top.second, last.first, last.second], self.head)


@torch.no_grad()
def pass_through(convs: Sequence[nn.Conv2d], head: nn.Sequential, slope: float = 0.0) -> None:
    """`UNet.start_as_identity`, given its layers.

    Args:
        convs: the 3x3 convolutions of the first block and of the last one, which reads the first
            block's output as the second half of its channels.
        head: the 1x1 convolutions.
        slope: of the activation r for negative values: r(x) - r(-x) = (1 + slope) x.

    Raises:
        ValueError: there are fewer than four channels.
    """
    if convs[0].out_channels < len(SIGNED):
        raise ValueError(
            f"a U-Net of {convs[0].out_channels} channels cannot start as the identity, "
            f"which takes {len(SIGNED)}"
        )
    signed = torch.tensor(SIGNED)
    again = signed @ signed.T
    top, *others = convs
    _set_matrix(top, signed)
    for conv in others:
        _set_matrix(conv, again, first_input=conv.in_channels - convs[-1].in_channels)
    gain = 1 / (1 + slope)
    for layer, matrix in zip(head, (gain * signed.T, torch.eye(2), torch.eye(2)), strict=False):
        assert isinstance(layer, nn.Conv2d)
        _set_matrix(layer, matrix)


def _set_matrix(layer: nn.Conv2d, matrix: Tensor, first_input: int = 0) -> None:
    """Make the first outputs the product of `matrix` and the inputs from `first_input` on."""
    rows, columns = matrix.shape
    center = layer.kernel_size[0] // 2
    layer.weight[:rows] = 0.0
    layer.weight[:rows, first_input : first_input + columns, center, center] = matrix
    if layer.bias is not None:
        layer.bias[:rows] = 0.0


class ComplexUNet(nn.Module):
    """U-Net on a complex image, (B, H, W) complex -> (B, H, W) complex.

    The image becomes two real channels. Each is zero-padded to multiples of 16 and normalised by
    its mean and (unbiased) standard deviation. After the U-Net, both are undone.

    Under autocast, the U-Net's blocks compute in the lower precision, everything else in float32.

    Args:
        unet: real (B, 2, H, W) -> (B, 2, H, W).
        pad_first: mean and deviation are those of the *padded* image, as in the published code;
            False: those of the image, and the normalised image is padded.
    """

    def __init__(self, unet: nn.Module, *, pad_first: bool = True) -> None:
        super().__init__()
        self.unet = unet
        self.pad_first = pad_first

    def forward(self, image: Tensor) -> Tensor:
        """(B, H, W) complex64 or complex128, any size -> the same shape and dtype."""
        height, width = image.shape[-2:]
        x = torch.view_as_real(image).movedim(-1, 1)  # (B, 2, H, W)
        top, bottom = _split_padding(height)
        left, right = _split_padding(width)
        if self.pad_first:
            x = F.pad(x, (left, right, top, bottom))
        mean, std = _channel_statistics(x)
        # A constant channel (an empty slice, a dead coil) is divided by 1 and comes back unchanged.
        # The effect of an epsilon would depend on the scale of the data.
        x = (x - mean) / torch.where(std > 0, std, 1.0)
        if not self.pad_first:
            x = F.pad(x, (left, right, top, bottom))
        dtype = _dtype_of_blocks(x)
        with torch.autocast(x.device.type, enabled=False):
            x = self.unet(x.to(dtype))
        x = x[:, :, top : top + height, left : left + width] * std + mean
        return torch.view_as_complex(x.movedim(1, -1).contiguous())


def run_unet(unet: ComplexUNet, image: Tensor, *, recompute: bool) -> Tensor:
    """U(image); with `recompute`, nothing is stored and the backward pass runs the U-Net again."""
    if recompute and torch.is_grad_enabled():
        result: Tensor = checkpoint(unet, image, use_reentrant=False)
        return result
    result = unet(image)
    return result


def _dtype_of_blocks(x: Tensor) -> torch.dtype:
    """The dtype of autocast if autocast is on and x is float32; otherwise that of x."""
    device = x.device.type
    if x.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def _split_padding(size: int) -> tuple[int, int]:
    """Zeros before (floor of half) and after (ceil of half) that make `size` a multiple of 16."""
    missing = -size % PAD_MULTIPLE
    return missing // 2, missing - missing // 2


def _channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation over (H, W), (B, 2, H, W) -> two of (B, 2, 1, 1).

    The gradient of the root is infinite at 0, and an outer `where` alone would turn it into NaN
    (0 times infinity). So an inner `where` keeps zeros away from the root.
    """
    var, mean = torch.var_mean(x, dim=(-2, -1), keepdim=True)
    return mean, torch.where(var > 0, torch.where(var > 0, var, 1.0).sqrt(), 0.0)
