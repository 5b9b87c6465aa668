"""Means over the volumes of a set or of a group in it, with 95 % intervals and reasons."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from banding_removal.evaluation.measure import (
    PAIR_SUMMARY,
    PROBE,
    PROBES,
    QUALITY,
    SINGLE_SUMMARY,
    VolumeResult,
)
from banding_removal.metrics.bootstrap import Estimate, Resampled, mean_over_volumes
from banding_removal.metrics.probe import summarize_volumes
from banding_removal.metrics.statistics import REGIONS, RegionSummary, summarize

FEW = "no interval: fewer than two volumes"


@dataclass(frozen=True, kw_only=True)
class Metric(Estimate):
    """A metric and its 95 % interval; `reason` says why any of the three is not finite."""

    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How many slices and volumes the banding metrics of a region rest on."""

    slices: int
    volumes: int
    resampled: Resampled
    reasons: dict[str, int]  # number of slices that are not measurable, by reason


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Means over volumes; metrics by name, regions as `low_signal` and `single.low_signal`."""

    volumes: int
    slices: int
    metrics: dict[str, Metric]
    measured: dict[str, Measured]


def summary_of(
    volumes: Sequence[VolumeResult], *, why_no_pairs: str, why_no_probe: str, seed: int
) -> Summary:
    """The summary of some volumes.

    Args:
        volumes: of a set, or of a group in it; at least one.
        why_no_pairs: why slices lack the other orientation; empty where none does.
        why_no_probe: why no volume has metrics of the probes; empty where there are.
        seed: of the resampling.
    """
    slices = [item for volume in volumes for item in volume.slices]
    pairs = summarize([item.banding for item in slices if item.banding], seed=seed)
    singles = summarize([item.single for item in slices], seed=seed)
    unpaired = sum(item.banding is None for item in slices)
    metrics = _quality(volumes, why_no_pairs, seed)
    measured = {}
    for region in REGIONS:
        for prefix, summary, names, missing in (
            ("", pairs, PAIR_SUMMARY, {why_no_pairs: unpaired} if unpaired else {}),
            ("single.", singles, SINGLE_SUMMARY, {}),
        ):
            key = f"{prefix}{region}"
            found = getattr(summary, region)
            measured[key] = _measured(found, missing)
            for name in names:
                estimate = getattr(found, name)
                reason = _why(estimate, measured[key])
                metrics[f"{key}.{name}"] = Metric(**vars(estimate), reason=reason)
    for probe in PROBES:
        metrics |= _probe(volumes, probe, why_no_probe, seed)
    return Summary(volumes=len(volumes), slices=len(slices), metrics=metrics, measured=measured)


def _quality(volumes: Sequence[VolumeResult], why_no_pairs: str, seed: int) -> dict[str, Metric]:
    """Image quality: means over volumes, as in validation."""
    metrics = {}
    for suffix in ("", "_y"):
        for name in QUALITY:
            values = {v.reference.name: v.metrics[f"{name}{suffix}"] for v in volumes}
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
            metrics[f"{name}{suffix}"] = Metric(**vars(estimate), reason=reason)
    return metrics


def _measured(found: RegionSummary, missing: Mapping[str, int]) -> Measured:
    return Measured(
        slices=found.slices,
        volumes=found.volumes,
        resampled=found.resampled,
        reasons={**found.reasons, **missing},
    )


def _why(estimate: Estimate, measured: Measured) -> str:
    """Why a banding metric or its interval is not known; empty where both are."""
    if not math.isnan(estimate.low):
        return ""
    if not math.isnan(estimate.value):
        return "no interval: fewer than two slices"
    if measured.slices:
        return "the targets have no texture"
    return "; ".join(f"{reason} ({n} slices)" for reason, n in measured.reasons.items())


def _probe(
    volumes: Sequence[VolumeResult], probe: str, why_not: str, seed: int
) -> dict[str, Metric]:
    """Metrics of one probe on these volumes; its classifiers were trained on the whole set."""
    found = [volume.probes[probe] for volume in volumes if probe in volume.probes]
    if not found:
        nothing = Metric(value=math.nan, reason=why_not or "one orientation only")
        return {f"{probe}.{name}": nothing for name in PROBE}
    result = summarize_volumes(found, seed=seed)
    metrics = {}
    for name in PROBE:
        estimate = getattr(result, name)
        reason = FEW if math.isnan(estimate.low) else ""
        metrics[f"{probe}.{name}"] = Metric(**vars(estimate), reason=reason)
    return metrics
