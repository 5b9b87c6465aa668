"""The held-out orientation probe: how well can orientation be told from a reconstruction?

A fresh classifier is trained on frozen reconstructions of some volumes, each slice in both
orientations, and tested on the other volumes, in turn, so that each volume is tested once by a
classifier that never saw it. Only banding tells the orientation, so accuracy and AUC are 1/2 where
there is none. Unlike the adversary that a predictor was trained against, the probe is one that the
predictor has never met.

    both = reconstruct_both(predictor, dataset, range(len(dataset)), device)
    pairs = [
        Pair(volume=s.name, slice_index=s.slice_index, r_x=s.along_x, r_y=s.along_y) for s in both
    ]
    print(probe(pairs).balanced_accuracy)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student_t
from torch import Tensor, nn
from torch.nn import functional as F

MIN_SIDE = 16  # pixels: the classifier's cells need a neighbourhood
CROP = 64  # pixels, side of the training crops
PAIRS_PER_STEP = 4
LR = 3e-3
WARMUP = 20  # steps
RESAMPLES = 2000
CONFIDENCE = 0.95

Image = Tensor | NDArray[np.floating]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """One slice, reconstructed with phase encoding along either axis; both images upright."""

    volume: str  # slices of one volume are never on both sides of training and test
    slice_index: int
    r_x: Image  # real (h, w), any unit and sign: phase encoding along x
    r_y: Image  # real (h, w): along y
    # bool (h, w): elsewhere the classifier finds zeros; None: it may look everywhere
    seen: Tensor | NDArray[np.bool_] | None = None


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure between 0 and 1 and its 95 % confidence interval over volumes."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, kw_only=True)
class VolumeFigures:
    """What was found on one volume; the same figures as in `ProbeResult`."""

    volume: str
    fold: int  # volumes of the same fold were tested by the same classifier
    slices: int
    balanced_accuracy: float
    auc: float
    paired: float


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """How well the orientation of held-out images is told; all three are 1/2 without banding.

    Means over volumes, weighted by their numbers of slices. A tie counts one half.
    """

    balanced_accuracy: Figure  # of one image alone, told by the logit's sign
    auc: Figure  # a volume's r_x against its r_y: no comparison across classifiers or volumes
    paired: Figure  # r_x and r_y of the same slice, told apart: the most sensitive
    volumes: tuple[VolumeFigures, ...]


def probe(
    pairs: Sequence[Pair],
    *,
    folds: int = 4,
    steps: int = 300,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> ProbeResult:
    """Train a classifier per fold of volumes, test it on the fold's, and sum up.

    The source is the held-out check of Defazio, Murrell, Recht (2020) that an adversary can see
    banding; here with a local classifier, cross-validation and intervals. The same seed gives the
    same figures on the same machine, in whatever order the pairs come; no global random state is
    read or moved. Volumes are dealt to folds in the order of their names.

    The intervals are of a bootstrap by volume. They hold the spread over volumes, not over the
    seeds of the classifier, and are of no width where all volumes have the same figure. Few volumes
    make them approximate: of 40 sets of 8 volumes of pure noise, they held 1/2 in 38 or 39.
    Training takes most of the time, about a minute on one core, whatever the number of slices.

    Args:
        pairs: slices of two volumes or more, of any sizes.
        folds: classifiers to train; at most one per volume is.
        steps: optimiser steps per classifier.
        seed: of weights, batches and resampling.
        device: where to train; on a GPU the figures repeat up to its own non-determinism.

    Raises:
        ValueError: fewer than two volumes or folds, no step, or images that are not real, (h, w),
            alike in shape, finite and of at least `MIN_SIDE` pixels a side, or a mask that does
            not fit them (volume and slice are named).
    """
    if folds < 2 or steps < 1:
        raise ValueError(f"the probe needs 2 folds and 1 step at least, got {folds} and {steps}")
    names = sorted({pair.volume for pair in pairs})
    if len(names) < 2:
        raise ValueError(
            f"the probe trains on some volumes and tests on others: it needs two at least, "
            f"got {len(names)} ({', '.join(names) or 'no slices'})"
        )
    folds = min(folds, len(names))
    # The caller may be in no_grad or inference_mode; training needs gradients.
    with torch.inference_mode(mode=False), torch.enable_grad():
        slices = [
            _normalized(pair) for pair in sorted(pairs, key=lambda p: (p.volume, p.slice_index))
        ]
        generator = torch.Generator().manual_seed(seed)
        results = []
        for fold in range(folds):
            held_out = names[fold::folds]
            training = [item for item in slices if item.volume not in held_out]
            classifier = _train(training, steps, generator, torch.device(device))
            for name in held_out:
                logits = [_logits(classifier, item) for item in slices if item.volume == name]
                results.append(_volume_figures(name, fold, torch.stack(logits)))
    results.sort(key=lambda result: result.volume)
    return summarize_volumes(results, seed=seed)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Slice:
    """Both orientations of a slice as the classifier sees them, float32 (2, h, w): r_x, r_y."""

    volume: str
    images: Tensor


def _normalized(pair: Pair) -> _Slice:
    """Both images checked, each then normalised from itself alone: nothing else can leak.

    Raises:
        ValueError: unusable images or mask, named by volume and slice.
    """
    where = f"{pair.volume} slice {pair.slice_index}"
    r_x, r_y = (torch.as_tensor(image).detach().cpu() for image in (pair.r_x, pair.r_y))
    if r_x.shape != r_y.shape or r_x.ndim != 2:
        raise ValueError(
            f"{where}: r_x {tuple(r_x.shape)} and r_y {tuple(r_y.shape)} are not both (h, w)"
        )
    if min(r_x.shape) < MIN_SIDE:
        raise ValueError(
            f"{where}: {tuple(r_x.shape)} is less than the probe's {MIN_SIDE} pixels a side"
        )
    for name, image in (("r_x", r_x), ("r_y", r_y)):
        if image.is_complex():
            raise ValueError(f"{where}: {name} is complex; the probe takes magnitude images")
        if not image.isfinite().all():
            raise ValueError(f"{where}: {name} is not finite everywhere")
    images = torch.stack([local_contrast(r_x), local_contrast(r_y)])
    if pair.seen is not None:
        seen = torch.as_tensor(pair.seen).cpu()
        if seen.dtype != torch.bool or seen.shape != r_x.shape:
            raise ValueError(
                f"{where}: seen is {seen.dtype} {tuple(seen.shape)}, not bool {tuple(r_x.shape)}"
            )
        images = images * seen
    return _Slice(volume=pair.volume, images=images)


def local_contrast(image: Tensor) -> Tensor:
    """(x - G_2 x) / (sqrt(G_4 (x - G_2 x)^2) + q / 1000), cut at +-4.

    G_s blurs with a Gaussian of s pixels, q is the 99.5th percentile of |x|. Streaks in the
    background, where they are hundredths of the signal, get the same weight as those in the
    anatomy. Unlike a division by the signal it stays quiet at zero signal.

    Args:
        image: real (h, w), any unit. An image without contrast gives zeros.

    Returns:
        float32 (h, w), no unit.
    """
    x = image.double()
    ranked = x.abs().flatten()
    unit = ranked.kthvalue(max(1, math.ceil(0.995 * len(ranked)))).values
    # Few pixels with signal: the largest one. The cut keeps squares of outliers finite.
    unit = torch.where(unit > 0, unit, ranked.max())
    x = (x / torch.where(unit > 0, unit, 1.0)).clamp(-10, 10)
    fine = x - _blur(x, 2.0)
    spread = _blur(fine.square(), 4.0).clamp(min=0).sqrt()
    return (fine / (spread + 1e-3)).clamp(-4, 4).float()


def _blur(image: Tensor, sigma: float) -> Tensor:
    """(h, w) blurred along both axes with a Gaussian cut at 3 sigma; the border is repeated."""
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1).to(image)
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(image[None, None], (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])[0, 0]


class OrientationClassifier(nn.Module):
    """f(x) = g(x) - g(x^T)^T with a convolutional g: logits per cell of 4 x 4 pixels.

    A transposed image has phase encoding along the other axis, and f the opposite sign: true of
    every predictor that is not told the orientation. So f has no bias towards an answer, and learns
    from each image as from two.
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


def _fresh_classifier(generator: torch.Generator, device: torch.device) -> OrientationClassifier:
    """A classifier with weights from `generator` (kaiming-normal; the last ones near 0)."""
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


def _train(
    slices: Sequence[_Slice], steps: int, generator: torch.Generator, device: torch.device
) -> OrientationClassifier:
    """A classifier trained on both labels of these slices: BCE of every cell.

    A loss per cell makes each cell's logit the evidence that it holds, and their mean the right
    thing to add up over an image.
    """
    classifier = _fresh_classifier(generator, device)
    optimizer = torch.optim.AdamW(
        classifier.parameters(), lr=LR, betas=(0.9, 0.99), weight_decay=1e-2
    )
    side = min(CROP, *(min(item.images.shape[-2:]) for item in slices))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / steps))
            group["lr"] /= 2
        chosen = torch.randint(len(slices), (PAIRS_PER_STEP,), generator=generator)
        crops = [_random_crop(slices[i].images, side, generator) for i in chosen.tolist()]
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
def _logits(classifier: OrientationClassifier, item: _Slice) -> Tensor:
    """Mean logit of each whole image of a slice, float64 (2,) on the CPU.

    One image at a time: equal images give equal logits to the last bit, which makes ties ties.
    """
    device = next(classifier.parameters()).device
    values = [
        classifier(image[None, None].to(device)).cpu().double().mean() for image in item.images
    ]
    return torch.stack(values)


def _volume_figures(name: str, fold: int, logits: Tensor) -> VolumeFigures:
    """The figures of one volume from its logits (slice, 2).

    Raises:
        RuntimeError: the classifier diverged.
    """
    if not logits.isfinite().all():
        raise RuntimeError(f"the probe's classifier diverged: logits of {name} are not finite")
    r_x, r_y = logits.unbind(dim=1)
    return VolumeFigures(
        volume=name,
        fold=fold,
        slices=len(logits),
        balanced_accuracy=(_share_positive(r_y) + _share_positive(-r_x)) / 2,
        auc=_share_positive(r_y[:, None] - r_x[None, :]),
        paired=_share_positive(r_y - r_x),
    )


def _share_positive(values: Tensor) -> float:
    """Share of positive values; zeros count one half."""
    return float((values.sign() + 1).mean() / 2)


def summarize_volumes(volumes: Sequence[VolumeFigures], *, seed: int = 0) -> ProbeResult:
    """Means over slices, and intervals from resampling whole volumes: all of them, or a group.

    The interval is NaN for a single volume.

    Raises:
        ValueError: no volume is given.
    """
    if not volumes:
        raise ValueError("the probe's figures need at least one volume")
    generator = torch.Generator().manual_seed(seed)
    count = len(volumes)
    drawn = torch.randint(count, (RESAMPLES, count), generator=generator)
    slices = torch.tensor([volume.slices for volume in volumes], dtype=torch.float64)

    def figure(value: Callable[[VolumeFigures], float]) -> Figure:
        values = torch.tensor([value(volume) for volume in volumes], dtype=torch.float64)
        estimate = float((values * slices).sum() / slices.sum())
        if count == 1:
            return Figure(estimate=estimate, low=math.nan, high=math.nan)
        means = (values * slices)[drawn].sum(dim=1) / slices[drawn].sum(dim=1)
        tail = _tail(count)
        low, high = torch.quantile(
            means, torch.tensor([tail, 1 - tail], dtype=torch.float64)
        ).tolist()
        # Where all volumes have the same figure, rounding would put the estimate outside.
        return Figure(estimate=estimate, low=min(low, estimate), high=max(high, estimate))

    return ProbeResult(
        balanced_accuracy=figure(lambda volume: volume.balanced_accuracy),
        auc=figure(lambda volume: volume.auc),
        paired=figure(lambda volume: volume.paired),
        volumes=tuple(volumes),
    )


def _tail(count: int) -> float:
    """Tail of the bootstrap distribution to cut on each side: Phi(-sqrt(n / (n - 1)) t_(n - 1)).

    The plain percentile interval of few values is too narrow; this is the expanded one of
    Hesterberg, "What Teachers Should Know about the Bootstrap" (2014), section 4.
    """
    quantile = student_t.ppf((1 + CONFIDENCE) / 2, count - 1)
    return float(norm.cdf(-math.sqrt(count / (count - 1)) * quantile))
