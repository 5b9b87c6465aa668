"""Residual classifiers with group norm, after GAN_stability (Mescheder et al., ICML 2018)."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS_PER_GROUP = 32
IMAGE_CHANNELS = 3


def group_norm(chans: int) -> nn.GroupNorm:
    """Group norm with chans // 32 groups (one group for narrow layers)."""
    return nn.GroupNorm(max(1, chans // CHANNELS_PER_GROUP), chans)


class ResidualBlock(nn.Module):
    """s(x) + conv(ReLU(GN(conv(ReLU(GN(x)))))), (B, in, H, W) -> (B, out, H, W).

    Convolutions without bias; hidden width min(in, out); the shortcut s is a 1x1 convolution
    without bias where the width changes, else the identity.
    """

    def __init__(self, in_chans: int, out_chans: int, kernel: int) -> None:
        super().__init__()
        hidden = min(in_chans, out_chans)
        self.norm_in = group_norm(in_chans)
        self.conv_in = nn.Conv2d(in_chans, hidden, kernel, padding=kernel // 2, bias=False)
        self.norm_out = group_norm(hidden)
        self.conv_out = nn.Conv2d(hidden, out_chans, kernel, padding=kernel // 2, bias=False)
        self.shortcut = (
            nn.Identity()
            if in_chans == out_chans
            else nn.Conv2d(in_chans, out_chans, kernel_size=1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H, W)."""
        y = self.conv_in(F.relu(self.norm_in(x)))
        return self.shortcut(x) + self.conv_out(F.relu(self.norm_out(y)))


class ResidualClassifier(nn.Module):
    """Stages of residual blocks with pooling between them, then one logit or a grid of them.

    [instance norm] -> conv -> stage (-> pooling -> wider stage) [-> pooling] -> global average
    -> ReLU -> linear; with a grid, ReLU -> average of each cell -> linear at the end.

    Args:
        chans: width of the first stage; each further stage is twice as wide.
        kernel: size of all convolutions but the shortcuts; odd.
        stages: number of blocks in each stage; the first block of a stage widens.
        pool: kind and size of the pooling between stages; None: there is one stage.
        pool_last: pool after the last stage, too.
        normalize_input: instance norm (without epsilon) of the input's channels.
        cell: side, in the last stage's pixels, of a square with a logit; None: one for the image.
    """

    def __init__(
        self,
        *,
        chans: int,
        kernel: int,
        stages: tuple[int, ...],
        pool: tuple[Literal["max", "average"], int] | None,
        pool_last: bool,
        normalize_input: bool,
        cell: int | None = None,
    ) -> None:
        super().__init__()
        self.normalize_input = normalize_input
        self.cell = cell
        self.stem = nn.Conv2d(IMAGE_CHANNELS, chans, kernel, padding=kernel // 2)
        layers: list[nn.Module] = []
        width = chans
        for stage, blocks in enumerate(stages):
            out = chans * 2**stage
            for block in range(blocks):
                layers.append(ResidualBlock(width if block == 0 else out, out, kernel))
            width = out
            if pool is not None and (stage < len(stages) - 1 or pool_last):
                layers.append(_pooling(*pool))
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(width, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Image (B, 3, H, W) -> logit (B, 1), or logits (B, 1, h, w)."""
        if self.normalize_input:
            x = _instance_norm(x)
        features = self.blocks(self.stem(x))
        if self.cell is None:
            return self.head(F.relu(features.mean(dim=(-2, -1))))
        # Cells that reach over the border are averages of what is within.
        cells = F.avg_pool2d(F.relu(features), self.cell, ceil_mode=True)
        return self.head(cells.movedim(1, -1)).movedim(-1, 1)


def _pooling(kind: Literal["max", "average"], size: int) -> nn.Module:
    return nn.MaxPool2d(size) if kind == "max" else nn.AvgPool2d(size)


def _instance_norm(x: Tensor) -> Tensor:
    """Each channel minus its mean, over its (biased) standard deviation; zeros stay zeros.

    As instance norm with epsilon 0, but finite where a channel is constant.
    """
    mean = x.mean(dim=(-2, -1), keepdim=True)
    centred = x - mean
    var = centred.square().mean(dim=(-2, -1), keepdim=True)
    return centred / (var + (var == 0)).sqrt()
