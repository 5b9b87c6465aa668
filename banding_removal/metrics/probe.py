"""The held-out orientation probe: can a new classifier tell the orientation of a reconstruction?

A classifier is trained on frozen reconstructions of some volumes, each slice in both orientations,
and tested on the other volumes, in turn, so that each volume is tested once by a classifier that
never saw it. Only banding depends on the orientation, so accuracy and AUC are 1/2 where there is
none. Unlike the adversary that a predictor was trained against, the predictor never met the probe.

    pairs = [Pair(volume="a", slice_index=3, r_x=r_x, r_y=r_y), ...]
    probe(pairs).balanced_accuracy                        # of the image, at equal local contrast
    probe(pairs, view="low_signal").balanced_accuracy     # of its dark texture alone
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from banding_removal.metrics.bootstrap import Bootstrap, Estimate
from banding_removal.metrics.low_signal import Image
from banding_removal.metrics.low_signal_view import low_signal_view
from banding_removal.metrics.probe_classifier import View, local_contrast, logits_of, train

MIN_SIDE = 16  # pixels: the classifier's cells need a neighbourhood


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """One slice, reconstructed with phase encoding along either axis; both images upright."""

    volume: str  # slices of one volume are never on both sides of training and test
    slice_index: int
    r_x: Image  # real (h, w), any unit and sign: phase encoding along x
    r_y: Image  # real (h, w): along y
    # bool (h, w): elsewhere the classifier finds zeros; None: it sees all pixels
    seen: Tensor | NDArray[np.bool_] | None = None


@dataclass(frozen=True, kw_only=True)
class VolumeProbe:
    """The probe on one volume; the same metrics as in `ProbeResult`."""

    volume: str
    fold: int  # volumes of the same fold were tested by the same classifier
    slices: int
    balanced_accuracy: float
    auc: float
    paired: float


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """How well the orientation of held-out images is recognised; all three are 1/2 without banding.

    Means over slices, with 95 % intervals (`bootstrap`). A tie counts one half.
    """

    balanced_accuracy: Estimate  # of one image alone, by the sign of the logit
    auc: Estimate  # r_x against r_y of a volume: no comparison across classifiers or volumes
    paired: Estimate  # r_x against r_y of the same slice: the most sensitive
    volumes: tuple[VolumeProbe, ...]


def probe(
    pairs: Sequence[Pair],
    *,
    view: View = "image",
    folds: int = 4,
    steps: int = 300,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> ProbeResult:
    """Train a classifier for each fold of volumes, test it on the fold's, and sum up.

    Defazio, Murrell, Recht (2020) check with a held-out adversary that banding can be seen; here
    the classifier is local, with cross-validation and intervals. The same seed gives the same
    result on the same machine, whatever the order of the pairs; no global random state is read or
    changed. Volumes are dealt to folds in the order of their names. Training takes most of the
    time, about a minute on one core, whatever the number of slices.

    The intervals contain the spread over volumes, not over seeds of the classifier.

    Args:
        pairs: slices of two volumes or more, of any sizes.
        view: what the classifier sees of an image: "image" (`local_contrast`), or "low_signal",
            its texture where signal is low (`low_signal_view`).
        folds: classifiers to train; at most one per volume is.
        steps: optimiser steps per classifier.
        seed: of weights, batches and resampling.
        device: where to train; on a GPU results repeat up to the GPU's own non-determinism.

    Raises:
        ValueError: fewer than two volumes or folds, no step, or images that are not real, (h, w),
            alike in shape, finite and of at least `MIN_SIDE` pixels a side, or a mask that does
            not fit them (volume and slice are named).
    """
    if folds < 2 or steps < 1:
        raise ValueError(f"the probe needs at least 2 folds and 1 step, got {folds} and {steps}")
    names = sorted({pair.volume for pair in pairs})
    if len(names) < 2:
        raise ValueError(
            f"the probe trains on some volumes and tests on others: it needs at least two, "
            f"got {len(names)} ({', '.join(names) or 'no slices'})"
        )
    folds = min(folds, len(names))
    # The caller may be in no_grad or inference_mode; training needs gradients.
    with torch.inference_mode(mode=False), torch.enable_grad():
        ordered = sorted(pairs, key=lambda pair: (pair.volume, pair.slice_index))
        slices = [(pair.volume, _viewed(pair, view)) for pair in ordered]
        generator = torch.Generator().manual_seed(seed)
        results = []
        for fold in range(folds):
            held_out = names[fold::folds]
            training = [images for volume, images in slices if volume not in held_out]
            classifier = train(training, steps, generator, torch.device(device))
            for name in held_out:
                logits = [
                    logits_of(classifier, images) for volume, images in slices if volume == name
                ]
                results.append(_volume_probe(name, fold, torch.stack(logits)))
    results.sort(key=lambda result: result.volume)
    return summarize_volumes(results, seed=seed)


def _viewed(pair: Pair, view: View) -> Tensor:
    """Both images of a slice as the classifier sees them, float32 (2, h, w): r_x, r_y.

    Each is normalised from itself alone: nothing else can leak.

    Raises:
        ValueError: images or mask cannot be used; volume and slice are named.
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
    both = torch.stack([r_x, r_y]).double()
    if view == "low_signal":
        images = low_signal_view(both[:, None])[:, 0].float()
    else:
        images = torch.stack([local_contrast(image) for image in both])
    if pair.seen is not None:
        seen = torch.as_tensor(pair.seen).cpu()
        if seen.dtype != torch.bool or seen.shape != r_x.shape:
            raise ValueError(
                f"{where}: seen is {seen.dtype} {tuple(seen.shape)}, not bool {tuple(r_x.shape)}"
            )
        images = images * seen
    return images


def _volume_probe(name: str, fold: int, logits: Tensor) -> VolumeProbe:
    """The metrics of one volume from its logits (slice, 2).

    Raises:
        RuntimeError: the classifier diverged.
    """
    if not logits.isfinite().all():
        raise RuntimeError(f"the probe's classifier diverged: logits of {name} are not finite")
    r_x, r_y = logits.unbind(dim=1)
    return VolumeProbe(
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


def summarize_volumes(volumes: Sequence[VolumeProbe], *, seed: int = 0) -> ProbeResult:
    """Means over the slices of these volumes, with intervals; none for a single volume.

    Raises:
        ValueError: no volume is given.
    """
    if not volumes:
        raise ValueError("the probe's metrics need at least one volume")
    draws = Bootstrap([volume.volume for volume in volumes], seed=seed)
    slices = [volume.slices for volume in volumes]
    return ProbeResult(
        balanced_accuracy=draws.mean([v.balanced_accuracy for v in volumes], weights=slices),
        auc=draws.mean([v.auc for v in volumes], weights=slices),
        paired=draws.mean([v.paired for v in volumes], weights=slices),
        volumes=tuple(volumes),
    )
