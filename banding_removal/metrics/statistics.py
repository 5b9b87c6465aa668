"""Banding of many slices: means over slices with 95 % intervals (`bootstrap`), by region."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from banding_removal.metrics.banding import BandingOfSlice, RegionBanding
from banding_removal.metrics.bootstrap import RESAMPLES, UNKNOWN, Bootstrap, Estimate, Resampled
from banding_removal.metrics.streaks import signed_rms_percent

Region = Literal["low_signal", "background", "anatomy"]
REGIONS: tuple[Region, ...] = ("low_signal", "background", "anatomy")


@dataclass(frozen=True, kw_only=True)
class RegionSummary:
    """Banding in one region over all measurable slices; `banding` has the definitions.

    `along`, `across` and `auc` are NaN for slices in one orientation only.
    """

    slices: int  # measurable ones
    volumes: int  # with a measurable slice
    resampled: Resampled  # what the intervals are from
    reasons: dict[str, int]  # number of slices that are not measurable, by reason
    contribution: Estimate  # dB, mean over slices
    signed_excess: Estimate  # % of q, from the mean power over slices
    along: Estimate  # dB, mean over slices whose target has texture
    across: Estimate
    auc: Estimate  # chance that rho(r_x) of a slice exceeds rho(r_y) of any; 0.5 without banding


@dataclass(frozen=True, kw_only=True)
class BandingSummary:
    """Banding of a data set, by region."""

    low_signal: RegionSummary
    background: RegionSummary
    anatomy: RegionSummary


def summarize(
    slices: Sequence[BandingOfSlice], *, resamples: int = RESAMPLES, seed: int = 0
) -> BandingSummary:
    """Means over slices with their intervals, in whatever order the slices come.

    Args:
        slices: results of `banding_of_slice`, each with its volume's name and its position; all of
            both orientations, or all of one.
        resamples: number of bootstrap draws.
        seed: of the draws.

    Returns:
        A summary of each region: NaN, and the reasons, where no slice is measurable.

    Raises:
        ValueError: a slice was given twice, or slices of one orientation and of both are mixed.
    """
    places = Counter((item.volume, item.slice_index) for item in slices)
    for (volume, index), count in places.items():
        if count > 1:
            raise ValueError(f"slice {index} of volume {volume!r} was given {count} times")
    if len({item.low_signal.r_y is None for item in slices}) > 1:
        raise ValueError("slices of one orientation and of both cannot be summarised together")
    # Sorted, so that sums do not depend on which process measured what.
    ordered = sorted(slices, key=lambda item: (item.volume, item.slice_index))

    def summary(region: Region) -> RegionSummary:
        regions = [(item.volume, getattr(item, region)) for item in ordered]
        return _summary_of_region(regions, resamples, seed)

    return BandingSummary(
        low_signal=summary("low_signal"),
        background=summary("background"),
        anatomy=summary("anatomy"),
    )


def _summary_of_region(
    regions: Sequence[tuple[str, RegionBanding]], resamples: int, seed: int
) -> RegionSummary:
    """The summary of one region, from the volume and the banding of each slice."""
    known = [region for _, region in regions if not region.reason]
    volumes = [volume for volume, region in regions if not region.reason]
    draws = Bootstrap(volumes, resamples=resamples, seed=seed)
    pairs = [(r.r_x.ratio, r.r_y.ratio) for r in known if r.r_y is not None]
    auc = draws.auc([x for x, _ in pairs], [y for _, y in pairs]) if pairs else UNKNOWN
    reasons = Counter(region.reason for _, region in regions if region.reason)
    return RegionSummary(
        slices=len(known),
        volumes=draws.volumes,
        resampled=draws.resampled,
        reasons=dict(sorted(reasons.items())),
        contribution=draws.mean([region.contribution for region in known]),
        signed_excess=draws.mean([r.power for r in known], transform=signed_rms_percent),
        along=draws.mean([region.along for region in known]),
        across=draws.mean([region.across for region in known]),
        auc=auc,
    )
