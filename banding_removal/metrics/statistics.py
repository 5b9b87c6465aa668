"""Banding of many slices: means over slices, with 95 % intervals from a bootstrap over volumes.

Slices of a volume are alike, so volumes are what is drawn again, with all their slices
(percentile intervals; Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), ch. 13). With
n_v slices in volume v, s_v their sum and c_v how often v was drawn, a draw's mean is
sum c_v s_v / sum c_v n_v. Intervals from less than about ten volumes are too narrow.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from banding_removal.metrics.banding import BandingOfSlice, RegionBanding
from banding_removal.metrics.single_banding import SingleBandingOfSlice, SingleRegionBanding
from banding_removal.metrics.streaks import rms_percent, signed_rms_percent

Floats = NDArray[np.float64]
Resampled = Literal["volumes", "slices", "nothing"]
Slice = TypeVar("Slice", BandingOfSlice, SingleBandingOfSlice)
TAILS = (0.025, 0.975)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure and its 95 % interval; NaN: not measurable (the interval: fewer than two slices)."""

    value: float
    low: float
    high: float


UNKNOWN = Estimate(value=math.nan, low=math.nan, high=math.nan)


@dataclass(frozen=True, kw_only=True)
class RegionSummary:
    """Banding in one region over all measurable slices; `banding` has the definitions."""

    slices: int  # measurable ones
    volumes: int  # with a measurable slice
    resampled: Resampled  # by the intervals: slices if there is one volume
    reasons: dict[str, int]  # number of slices that are not measurable, by reason
    contribution: Estimate  # dB, mean over slices
    excess: Estimate  # % of q, of the mean power over slices
    signed_excess: Estimate
    along: Estimate  # dB, mean over slices whose target has texture
    across: Estimate
    auc: Estimate  # probability that rho(r_x) of a slice is above rho(r_y) of any slice; 0.5: none


@dataclass(frozen=True, kw_only=True)
class BandingSummary:
    """Banding of a data set, by region."""

    low_signal: RegionSummary
    background: RegionSummary
    anatomy: RegionSummary


@dataclass(frozen=True, kw_only=True)
class SingleRegionSummary:
    """The weaker figures from one orientation in one region, over all measurable slices."""

    slices: int
    volumes: int
    resampled: Resampled
    reasons: dict[str, int]
    contribution: Estimate
    excess: Estimate
    signed_excess: Estimate


@dataclass(frozen=True, kw_only=True)
class SingleBandingSummary:
    """The weaker figures from one orientation, by region."""

    low_signal: SingleRegionSummary
    background: SingleRegionSummary
    anatomy: SingleRegionSummary


def summarize(
    slices: Sequence[BandingOfSlice], *, resamples: int = 2000, seed: int = 0
) -> BandingSummary:
    """Means over slices and their intervals; the order of the slices does not matter.

    Args:
        slices: results of `banding_of_slice`, each with its volume's name and its position.
        resamples: number of bootstrap draws.
        seed: of the draws.

    Returns:
        One summary a region; NaN and the reasons where no slice is measurable.

    Raises:
        ValueError: a slice was given twice.
    """
    ordered = _in_order(slices)

    def summary(regions: Sequence[RegionBanding]) -> RegionSummary:
        known = [region for region in regions if not region.reason]
        draws = _Bootstrap(_volumes_of_measurable(ordered, regions), resamples, seed)
        powers = [region.power for region in known]
        return RegionSummary(
            slices=len(known),
            volumes=draws.volumes,
            resampled=draws.resampled,
            reasons=_reasons(regions),
            contribution=draws.mean([region.contribution for region in known]),
            excess=draws.mean(powers, rms_percent),
            signed_excess=draws.mean(powers, signed_rms_percent),
            along=draws.mean([region.along for region in known]),
            across=draws.mean([region.across for region in known]),
            auc=draws.auc([r.r_x.ratio for r in known], [r.r_y.ratio for r in known]),
        )

    return BandingSummary(
        low_signal=summary([item.low_signal for item in ordered]),
        background=summary([item.background for item in ordered]),
        anatomy=summary([item.anatomy for item in ordered]),
    )


def summarize_single(
    slices: Sequence[SingleBandingOfSlice], *, resamples: int = 2000, seed: int = 0
) -> SingleBandingSummary:
    """`summarize` for the weaker figures from one orientation."""
    ordered = _in_order(slices)

    def summary(regions: Sequence[SingleRegionBanding]) -> SingleRegionSummary:
        known = [region for region in regions if not region.reason]
        draws = _Bootstrap(_volumes_of_measurable(ordered, regions), resamples, seed)
        powers = [region.power for region in known]
        return SingleRegionSummary(
            slices=len(known),
            volumes=draws.volumes,
            resampled=draws.resampled,
            reasons=_reasons(regions),
            contribution=draws.mean([region.contribution for region in known]),
            excess=draws.mean(powers, rms_percent),
            signed_excess=draws.mean(powers, signed_rms_percent),
        )

    return SingleBandingSummary(
        low_signal=summary([item.low_signal for item in ordered]),
        background=summary([item.background for item in ordered]),
        anatomy=summary([item.anatomy for item in ordered]),
    )


def mean_over_volumes(
    values: Mapping[str, float], *, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Mean of a figure that each volume has, image quality for one, and its interval.

    Args:
        values: of each volume, by name; NaN ones do not count.
        resamples: number of bootstrap draws.
        seed: of the draws.

    Returns:
        The mean; without an interval where it is infinite or of fewer than two volumes.
    """
    known = {name: value for name, value in sorted(values.items()) if not math.isnan(value)}
    if any(math.isinf(value) for value in known.values()):
        return Estimate(value=sum(known.values()), low=math.nan, high=math.nan)
    drawn = _Bootstrap(list(known), resamples, seed).mean(list(known.values()))
    # where all volumes have the same figure, rounding would put the mean outside
    return Estimate(
        value=drawn.value,
        low=min(drawn.low, drawn.value),
        high=max(drawn.high, drawn.value),
    )


class _Bootstrap:
    """Draws with replacement of volumes, or of slices if there is one volume."""

    def __init__(self, volumes: Sequence[str], resamples: int, seed: int) -> None:
        """`volumes` has the volume of each measurable slice."""
        names, volume_of = np.unique(np.array(volumes, dtype=str), return_inverse=True)
        self.volumes = len(names)
        self.unit = volume_of if len(names) > 1 else np.arange(len(volumes))  # of each slice
        self.units = len(np.unique(self.unit))
        self.resampled: Resampled = (
            "volumes" if len(names) > 1 else "slices" if self.units > 1 else "nothing"
        )
        rng = np.random.default_rng(seed)
        draws = rng.integers(max(1, self.units), size=(resamples, self.units))
        # how often each unit is in each draw, (draw, unit)
        drawn = [np.bincount(draw, minlength=self.units) for draw in draws]
        self.drawn: Floats = np.stack(drawn).astype(np.float64)

    def mean(self, values: Sequence[float], figure: Callable[[float], float] = float) -> Estimate:
        """`figure` of the mean of those of the values that are known, one a slice."""
        measured = np.array(values, dtype=np.float64)
        known = ~np.isnan(measured)
        unit = self.unit[known]
        sums = np.bincount(unit, measured[known], minlength=self.units)
        counts = np.bincount(unit, minlength=self.units).astype(np.float64)
        if not known.any():
            return UNKNOWN
        return _estimate(
            sums.sum() / counts.sum(),
            self.drawn @ sums,
            self.drawn @ counts,
            enough=bool(np.count_nonzero(counts) > 1),
            figure=figure,
        )

    def auc(self, above: Sequence[float], below: Sequence[float]) -> Estimate:
        """Chance that a slice's `above` is more than any slice's `below`; a tie counts a half."""
        if not above:
            return UNKNOWN
        high, low = np.array(above), np.array(below)
        wins = np.zeros((self.units, self.units))  # of one unit's slices over another's
        for i in range(self.units):
            own = high[self.unit == i][:, None]
            score = (own > low).sum(axis=0) + 0.5 * (own == low).sum(axis=0)
            wins[i] = np.bincount(self.unit, score, minlength=self.units)
        counts = np.bincount(self.unit, minlength=self.units).astype(np.float64)
        return _estimate(
            wins.sum() / len(above) ** 2,
            ((self.drawn @ wins) * self.drawn).sum(axis=1),
            (self.drawn @ counts) ** 2,
            enough=self.units > 1,
            figure=float,
        )


def _estimate(
    value: float,
    numerators: Floats,
    denominators: Floats,
    *,
    enough: bool,
    figure: Callable[[float], float],
) -> Estimate:
    """`figure` of a value, and its interval from what the draws made of it."""
    low = high = math.nan
    if enough:
        drawn = denominators > 0  # a draw can miss every slice where the figure is known
        means = numerators[drawn] / denominators[drawn]
        low, high = (float(x) for x in np.quantile([figure(m) for m in means.tolist()], TAILS))
    return Estimate(value=figure(float(value)), low=low, high=high)


def _in_order(slices: Sequence[Slice]) -> list[Slice]:
    """Slices sorted by volume and position: sums do not depend on who measured them."""
    places = Counter((item.volume, item.slice_index) for item in slices)
    for (volume, index), count in places.items():
        if count > 1:
            raise ValueError(f"slice {index} of volume {volume!r} was given {count} times")
    return sorted(slices, key=lambda item: (item.volume, item.slice_index))


def _volumes_of_measurable(
    slices: Sequence[Slice], regions: Sequence[RegionBanding | SingleRegionBanding]
) -> list[str]:
    pairs = zip(slices, regions, strict=True)
    return [item.volume for item, region in pairs if not region.reason]


def _reasons(regions: Sequence[RegionBanding | SingleRegionBanding]) -> dict[str, int]:
    """How many slices are not measurable, by reason."""
    return dict(sorted(Counter(region.reason for region in regions if region.reason).items()))
