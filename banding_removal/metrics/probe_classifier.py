"""The probe's classifier: what it sees of an image, its layers, its training, its answer."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from banding_removal.metrics.filters import gaussian_blur

View = Literal["image", "low_signal"]
CROP = 64  # pixels, side of the training crops
PAIRS_PER_STEP = 4
LR = 3e-3
WARMUP = 20  # steps


def local_contrast(image: Tensor) -> Tensor:
    """(x - G_2 x) / (sqrt(G_4 (x - G_2 x)^2) + q / 1000), clipped to [-4, 4].

    G_s blurs with a Gaussian of s pixels, q is the 99.5th percentile of |x|. Streaks in the
    background, where they are hundredths of the signal, get the same weight as those in the
    anatomy. Unlike a division by the signal, this stays quiet at zero signal.

    Args:
        image: real (h, w), any unit. An image without contrast gives zeros.

    Returns:
        float32 (h, w), without unit.
    """
    x = image.double()
    ranked = x.abs().flatten()
    unit = ranked.kthvalue(max(1, math.ceil(0.995 * len(ranked)))).values
    # Few pixels with signal: the largest one. Clipping keeps squares of outliers finite.
    unit = torch.where(unit > 0, unit, ranked.max())
    x = (x / torch.where(unit > 0, unit, 1.0)).clamp(-10, 10)[None]
    fine = x - gaussian_blur(x, 2.0)
    spread = gaussian_blur(fine.square(), 4.0).clamp(min=0).sqrt()
    return (fine / (spread + 1e-3)).clamp(-4, 4).float()[0]


class OrientationClassifier(nn.Module):
    """f(x) = g(x) - g(x^T)^T with a convolutional g: logits for each cell of 4 x 4 pixels.

    A transposed image has phase encoding along the other axis, and f has the opposite sign: true of
    every predictor that is blind to the orientation. So f has no bias towards one answer, and each
    image teaches it as much as two.
    """

    def __init__(self, chans: int = 12) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, chans, 5, padding=2),
            nn.ReLU(),
            nn.Conv2d(chans, chans, 5, padding=2),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(chans, 2 * chans, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(2 * chans, 2 * chans, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * chans, 1, 1, bias=False),  # a bias would cancel
        )

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, 1, h, w) -> logits of `along y` (B, h // 4, w // 4)."""
        cells = self.layers(x) - self.layers(x.swapaxes(-2, -1)).swapaxes(-2, -1)
        return cells[:, 0]


def fresh_classifier(generator: torch.Generator, device: torch.device) -> OrientationClassifier:
    """A classifier with weights from `generator`: Kaiming-normal, the last ones a tenth of it."""
    with torch.device("meta"):  # the layers' own initialisation would draw from the global state
        classifier = OrientationClassifier()
    classifier = classifier.float().to_empty(device="cpu")
    convolutions = [layer for layer in classifier.layers if isinstance(layer, nn.Conv2d)]
    for layer in convolutions:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    with torch.no_grad():
        convolutions[-1].weight.mul_(0.1)
    return classifier.to(device)


def train(
    slices: Sequence[Tensor], steps: int, generator: torch.Generator, device: torch.device
) -> OrientationClassifier:
    """A classifier trained on slices, each float32 (2, h, w) with phase encoding along x and y.

    The loss is the binary cross-entropy of every cell: each cell's logit becomes the evidence in
    that cell, and their mean the right sum over an image.
    """
    classifier = fresh_classifier(generator, device)
    optimizer = torch.optim.AdamW(
        classifier.parameters(), lr=LR, betas=(0.9, 0.99), weight_decay=1e-2
    )
    side = min(CROP, *(min(images.shape[-2:]) for images in slices))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / steps))
            group["lr"] /= 2
        chosen = torch.randint(len(slices), (PAIRS_PER_STEP,), generator=generator)
        crops = [_random_crop(slices[i], side, generator) for i in chosen.tolist()]
        batch = torch.stack(crops).to(device)  # (B, 2, side, side)
        logits = classifier(batch.flatten(0, 1)[:, None]).unflatten(0, (-1, 2))
        labels = torch.tensor([0.0, 1.0], device=device)[None, :, None, None]
        loss = F.binary_cross_entropy_with_logits(logits, labels.expand_as(logits))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return classifier


def _random_crop(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """The same random square of both images (2, h, w), flipped along random axes."""
    height, width = images.shape[-2:]
    top, left, flips = (
        int(torch.randint(n, (), generator=generator))
        for n in (height - side + 1, width - side + 1, 4)
    )
    crop = images[:, top : top + side, left : left + side]
    return crop.flip([axis for axis in (1, 2) if flips & axis])


@torch.no_grad()
def logits_of(classifier: OrientationClassifier, images: Tensor) -> Tensor:
    """Mean logit of each whole image of a slice (2, h, w): float64 (2,) on the CPU.

    One image at a time: equal images have equal logits to the last bit, and so are ties.
    """
    device = next(classifier.parameters()).device
    values = [classifier(image[None, None].to(device)).cpu().double().mean() for image in images]
    return torch.stack(values)
