"""The complex U-Net of one cascade: normalised, padded, on two real channels."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PAD_MULTIPLE = 16


class ConvBlock(nn.Sequential):
    """Twice [3x3 convolution, instance norm, ReLU, dropout], (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, in_chans: int, out_chans: int, dropout: float) -> None:
        layers: list[nn.Module] = []
        for chans in (in_chans, out_chans):
            layers += [
                nn.Conv2d(chans, out_chans, kernel_size=3, padding=1),
                nn.InstanceNorm2d(out_chans),
                nn.ReLU(),
                nn.Dropout2d(dropout),
            ]
        super().__init__(*layers)


class UNet(nn.Module):
    """U-Net of Ronneberger et al. (2015) as fastMRI uses it, (B, 2, H, W) -> (B, 2, H, W).

    Widths are c, 2c, 4c, ... down, as wide at the bottom as in the last of these, and back;
    at the end 1x1 convolutions c -> c/2 -> 2 -> 2 without a non-linearity between them.

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

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2, H, W) -> (B, 2, H, W), any H and W of at least 2^pools."""
        skips: list[Tensor] = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, kernel_size=2)
        x = self.bottom(x)
        for block in self.up:
            skip = skips.pop()
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([x, skip], dim=1))
        return self.head(x)


class ComplexUNet(nn.Module):
    """U-Net on a complex image, (B, H, W) complex -> (B, H, W) complex.

    The image becomes two real channels, is zero-padded to multiples of 16, and each channel is
    normalised by its mean and (unbiased) standard deviation over the *padded* image; both are
    undone afterwards. The statistics after the padding are the published code's choice.
    """

    def __init__(self, chans: int, pools: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.unet = UNet(chans, pools, dropout)

    def forward(self, image: Tensor) -> Tensor:
        """(B, H, W) complex64 or complex128, any size -> the same shape and dtype."""
        height, width = image.shape[-2:]
        x = torch.view_as_real(image).movedim(-1, 1)  # (B, 2, H, W)
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
