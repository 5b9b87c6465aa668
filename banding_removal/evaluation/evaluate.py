"""Metrics of named sets of reconstructions: image quality, banding, and the orientation probes.

    evaluation = evaluate([ImageSet(...), ImageSet(...)], reference_volumes(files))
    evaluation.sets[0].overall.metrics["low_signal.contribution"]    # value, 95 % interval, reason

Names of metrics, as they also stand in results.json and the CSV files:

* `ssim`, `nmse`, `psnr`, `mse`, `hfen` (`metrics.image_quality`): with phase encoding along x, as
  in validation; `ssim_y` and so on: along y;
* `low_signal.contribution`, `.signed_excess`, `.along`, `.across`, `.auc` (`metrics.banding`), and
  the same of `background` and `anatomy`;
* `single.low_signal.contribution`, `.signed_excess`: weaker, from phase encoding along x alone;
  sets with both orientations have them, too, so that like can be compared with like;
* `probe.balanced_accuracy`, `.auc`, `.paired` (`metrics.probe`): of classifiers that see the image;
  `probe_low_signal.*`: of classifiers that see its low-signal texture alone.

A metric that cannot be measured is NaN, with the reason. All intervals are those of
`metrics.bootstrap`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from banding_removal.evaluation.image_sets import ImageSet, ReferenceVolume
from banding_removal.evaluation.measure import (
    PROBES,
    VolumeResult,
    VolumeSums,
    cropped,
    scale_factor,
    warnings_of,
)
from banding_removal.evaluation.summary import Summary, summary_of
from banding_removal.metrics.probe import MIN_SIDE, Pair, VolumeProbe, probe

GROUPINGS = ("acquisition", "scanner", "group")


@dataclass(frozen=True, kw_only=True)
class SetResult:
    """Everything about one set."""

    name: str
    origin: str
    scale_factor: float  # brings the images nearest to the targets (least squares)
    warnings: tuple[str, ...]
    overall: Summary
    groups: dict[str, dict[str, Summary]]  # by acquisition, scanner, group (both), then by value
    volumes: tuple[VolumeResult, ...]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results of all sets, in their order; all on the same slices."""

    sets: tuple[SetResult, ...]


def evaluate(
    sets: Sequence[ImageSet],
    volumes: Sequence[ReferenceVolume],
    *,
    probe_steps: int | None = 300,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Evaluation:
    """All metrics of all sets.

    Args:
        sets: with different names, each with the same slices of these volumes.
        volumes: references; the names of the sets' images refer to them.
        probe_steps: optimiser steps of each classifier of both probes; None: no probes.
        device: where the probes are trained.
        seed: of probes and resampling.

    Raises:
        ValueError: names are not distinct or not known, sets have different slices, or shapes of
            the images do not fit.
        VolumeError: images are too small for SSIM.
        FloatingPointError: an image is not finite; set, volume and slice are named.
    """
    names = [image_set.name for image_set in sets]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"sets need different names, got {', '.join(names) or 'none'}")
    references = {volume.name: volume for volume in volumes}
    results: list[SetResult] = []
    for image_set in sets:
        result = _evaluate_set(image_set, references, probe_steps, device, seed)
        if results and _places(result) != _places(results[0]):
            raise ValueError(
                f"sets {results[0].name!r} and {result.name!r} have different slices: "
                f"{len(_places(results[0]))} and {len(_places(result))}"
            )
        results.append(result)
    return Evaluation(sets=tuple(results))


def _places(result: SetResult) -> set[tuple[str, int]]:
    return {(s.volume, s.slice_index) for volume in result.volumes for s in volume.slices}


def _evaluate_set(
    image_set: ImageSet,
    references: Mapping[str, ReferenceVolume],
    probe_steps: int | None,
    device: torch.device | str,
    seed: int,
) -> SetResult:
    sums, pairs, why_no_pairs = _measure(image_set, references, keep_pairs=probe_steps is not None)
    why_no_probe = _why_no_probe(pairs, probe_steps, why_no_pairs)
    probed: dict[str, dict[str, VolumeProbe]] = defaultdict(dict)  # by volume, then by probe
    if probe_steps is not None and not why_no_probe:
        for name, view in PROBES.items():
            found = probe(pairs, view=view, steps=probe_steps, seed=seed, device=device)
            for volume in found.volumes:
                probed[volume.volume][name] = volume
    volumes = [part.result(probed[name]) for name, part in sums.items()]

    def summary(members: Sequence[VolumeResult]) -> Summary:
        return summary_of(members, why_no_pairs=why_no_pairs, why_no_probe=why_no_probe, seed=seed)

    groups: dict[str, dict[str, Summary]] = {}
    for grouping in GROUPINGS:
        members: dict[str, list[VolumeResult]] = defaultdict(list)
        for result in volumes:
            members[getattr(result.reference, grouping)].append(result)
        groups[grouping] = {value: summary(members[value]) for value in sorted(members)}
    return SetResult(
        name=image_set.name,
        origin=image_set.origin,
        scale_factor=scale_factor(sums),
        warnings=tuple(warnings_of(sums)),
        overall=summary(volumes),
        groups=groups,
        volumes=tuple(volumes),
    )


def _measure(
    image_set: ImageSet, references: Mapping[str, ReferenceVolume], *, keep_pairs: bool
) -> tuple[dict[str, VolumeSums], list[Pair], str]:
    """Measure each slice as it comes; the float32 pairs for the probes are all that is kept.

    Returns:
        Sums by volume, the pairs, and why slices lack the other orientation (empty: none does).
    """
    sums: dict[str, VolumeSums] = {}
    pairs: list[Pair] = []
    why_no_pairs = ""
    for given in tqdm(image_set.slices, desc=image_set.name, leave=False, mininterval=1):
        if given.name not in references:
            raise ValueError(f"set {image_set.name!r}: {given.name} is not among the volumes")
        images = cropped(given, image_set.name)
        if images.name not in sums:
            sums[images.name] = VolumeSums.of(references[images.name])
        sums[images.name].add(images)
        if images.along_y is None:
            why_no_pairs = images.why_no_along_y
        elif keep_pairs:
            pairs.append(
                Pair(
                    volume=images.name,
                    slice_index=images.slice_index,
                    r_x=images.along_x,
                    r_y=images.along_y,
                )
            )
    if not sums:
        raise ValueError(f"set {image_set.name!r} has no slices")
    return sums, pairs, why_no_pairs


def _why_no_probe(pairs: Sequence[Pair], probe_steps: int | None, why_no_pairs: str) -> str:
    """Why the probes cannot run; empty if they can."""
    if probe_steps is None:
        return "turned off"
    if not pairs:
        return why_no_pairs
    if len({pair.volume for pair in pairs}) < 2:
        return "fewer than two volumes: one to train on, one to test on"
    if min(min(pair.r_x.shape) for pair in pairs) < MIN_SIDE:
        return f"images of less than {MIN_SIDE} pixels a side"
    return ""
