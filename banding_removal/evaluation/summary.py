"""Means over the volumes of a set or of a group in it, with 95 % intervals and reasons."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from banding_removal.evaluation.measure import (
    PAIR_SUMMARY,
    PROBE,
    QUALITY,
    REGIONS,
    SINGLE_SUMMARY,
    VolumeResult,
)
from banding_removal.metrics.probe import summarize_volumes
from banding_removal.metrics.statistics import (
    BandingSummary,
    Resampled,
    SingleBandingSummary,
    mean_over_volumes,
    summarize,
    summarize_single,
)

FEW = "no interval: fewer than two volumes"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure and its 95 % interval; `reason` says why any of them is not finite."""

    value: float
    low: float
    high: float
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """On how much the banding figures of a region rest."""

    slices: int
    volumes: int
    resampled: Resampled
    reasons: dict[str, int]  # number of slices that are not measurable, by reason


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Means over volumes; figures by name, regions as `low_signal` and `single.low_signal`."""

    volumes: int
    slices: int
    figures: dict[str, Figure]
    measured: dict[str, Measured]


def summary_of(
    volumes: Sequence[VolumeResult], *, why_no_pairs: str, why_no_probe: str, seed: int
) -> Summary:
    """The summary of some volumes.

    Args:
        volumes: of a set, or of a group in it; one at least.
        why_no_pairs: why slices lack the other orientation; empty where none does.
        why_no_probe: why no volume has figures of the probe; empty where there are.
        seed: of the resampling.
    """
    slices = [item for volume in volumes for item in volume.slices]
    pairs = summarize([item.banding for item in slices if item.banding], seed=seed)
    singles = summarize_single([item.single for item in slices], seed=seed)
    unpaired = sum(item.banding is None for item in slices)
    figures = _quality(volumes, why_no_pairs, seed)
    measured = {}
    for region in REGIONS:
        for prefix, summary, names, missing in (
            ("", pairs, PAIR_SUMMARY, {why_no_pairs: unpaired} if unpaired else {}),
            ("single.", singles, SINGLE_SUMMARY, {}),
        ):
            key = f"{prefix}{region}"
            measured[key] = _measured(summary, region, missing)
            for name in names:
                estimate = getattr(getattr(summary, region), name)
                reason = _why(estimate.value, estimate.low, measured[key])
                figures[f"{key}.{name}"] = Figure(**vars(estimate), reason=reason)
    figures |= _probe(volumes, why_no_probe, seed)
    return Summary(volumes=len(volumes), slices=len(slices), figures=figures, measured=measured)


def _quality(volumes: Sequence[VolumeResult], why_no_pairs: str, seed: int) -> dict[str, Figure]:
    """Image quality: means over volumes, as in validation."""
    figures = {}
    for suffix in ("", "_y"):
        for name in QUALITY:
            values = {v.reference.name: v.figures[f"{name}{suffix}"] for v in volumes}
            estimate = mean_over_volumes(values, seed=seed)
            reason = ""
            if math.isinf(estimate.value):
                reason = "infinite: a reconstruction equals its target"
            elif math.isnan(estimate.value):
                no_texture = "targets without texture, or images too small"
                reason = no_texture if name == "hfen" else "targets are zero"
                reason = why_no_pairs if suffix and why_no_pairs else reason
            elif math.isnan(estimate.low):
                reason = FEW
            figures[f"{name}{suffix}"] = Figure(**vars(estimate), reason=reason)
    return figures


def _measured(
    summary: BandingSummary | SingleBandingSummary, region: str, missing: dict[str, int]
) -> Measured:
    found = getattr(summary, region)
    return Measured(
        slices=found.slices,
        volumes=found.volumes,
        resampled=found.resampled,
        reasons={**found.reasons, **missing},
    )


def _why(value: float, low: float, measured: Measured) -> str:
    """Why a banding figure or its interval is not known; empty where both are."""
    if not math.isnan(low):
        return ""
    if not math.isnan(value):
        return "no interval: fewer than two slices"
    if measured.slices:
        return "the targets have no texture"
    return "; ".join(f"{reason} ({n} slices)" for reason, n in measured.reasons.items())


def _probe(volumes: Sequence[VolumeResult], why_not: str, seed: int) -> dict[str, Figure]:
    """The probe's figures on these volumes, told by classifiers trained on all of the set."""
    found = [volume.probe for volume in volumes if volume.probe is not None]
    if not found:
        why_not = why_not or "one orientation only"
        nothing = Figure(value=math.nan, low=math.nan, high=math.nan, reason=why_not)
        return {f"probe.{name}": nothing for name in PROBE}
    result = summarize_volumes(found, seed=seed)
    figures = {}
    for name in PROBE:
        item = getattr(result, name)
        reason = FEW if math.isnan(item.low) else ""
        figures[f"probe.{name}"] = Figure(
            value=item.estimate, low=item.low, high=item.high, reason=reason
        )
    return figures
