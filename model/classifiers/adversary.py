"""The published adversary architectures and a grid of logits by name, and ensembles of them."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from banding_removal.model.classifiers.residual import ResidualClassifier, group_norm


class Ensemble(nn.Module):
    """Classifiers side by side, image (B, 3, H, W) -> logits (B, n), or (B, n, h, w)."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, n), or (B, n, h, w) of a grid."""
        return torch.cat([member(x) for member in self.members], dim=1)


def _two_pooled_stages(chans: int, blocks: int) -> nn.Module:
    return ResidualClassifier(
        chans=chans,
        kernel=5,
        stages=(blocks, blocks),
        pool=("max", 4),
        pool_last=True,
        normalize_input=True,
    )


def _resnet50(chans: int) -> nn.Module:
    # Imported here, because torchvision takes as long to import as torch and all else together.
    from torchvision.models.resnet import Bottleneck, ResNet

    # torchvision's own initialisation is kaiming-normal fan-out, as published; width_per_group
    # scales the bottlenecks, which at 64 are the usual ones.
    return ResNet(
        Bottleneck, [3, 4, 6, 3], num_classes=1, norm_layer=group_norm, width_per_group=chans
    )


def _unpooled_resnet50(chans: int) -> nn.Module:
    net = _resnet50(chans)
    net.maxpool = nn.Identity()
    return net


# What to build, called with chans=<width>, and its published or usual width.
ARCHITECTURES: dict[str, tuple[Callable[..., nn.Module], int]] = {
    "shallow": (partial(_two_pooled_stages, blocks=2), 64),
    "wide": (partial(_two_pooled_stages, blocks=3), 128),
    "prev": (
        partial(
            ResidualClassifier,
            kernel=3,
            stages=(3, 3),
            pool=("average", 2),
            pool_last=False,
            normalize_input=False,
        ),
        192,
    ),
    "simple": (
        partial(
            ResidualClassifier,
            kernel=3,
            stages=(2,),
            pool=None,
            pool_last=False,
            normalize_input=False,
        ),
        128,
    ),
    "resnet50": (_resnet50, 64),
    "unpooled_resnet50": (_unpooled_resnet50, 64),
    # Not a published one: a logit for each square of 16 pixels. A single logit can be satisfied by
    # streaks in one place that make up for those in another.
    "patch": (
        partial(
            ResidualClassifier,
            kernel=5,
            stages=(1, 2),
            pool=("max", 4),
            pool_last=False,
            normalize_input=False,
            cell=4,
        ),
        64,
    ),
}


if TYPE_CHECKING:
    Architecture = str
else:
    Architecture = Literal[*ARCHITECTURES]  # the values that the setting `adversary` accepts


def build_adversary(
    architecture: Architecture, *, members: int = 1, chans: int | None = None
) -> Ensemble:
    """An ensemble of `members` adversaries, image (B, 3, H, W) -> logits (B, members[, h, w]).

    Args:
        architecture: one of `ARCHITECTURES`.
        members: number of independently initialised networks.
        chans: width instead of the published one, for small runs (resnets: bottleneck width).

    Raises:
        ValueError: no such architecture, or no member.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"adversary {architecture!r} is not one of {', '.join(ARCHITECTURES)}")
    if members < 1:
        raise ValueError(f"an ensemble needs at least one member, got {members}")
    build, published_chans = ARCHITECTURES[architecture]
    return Ensemble([build(chans=chans or published_chans) for _ in range(members)])
