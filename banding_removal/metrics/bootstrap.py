"""The bootstrap behind every 95 % interval: of banding, image quality and the probe.

Slices of a volume resemble each other, so volumes are resampled, each with all its slices; slices
are resampled only if there is one volume. With s_v the weighted sum over the slices of volume v,
n_v the sum of their weights (the number of slices, unless said otherwise) and c_v how often v is
drawn, when as many volumes are drawn with replacement as there are, a draw's mean is

    sum_v c_v s_v / sum_v c_v n_v

and the interval runs from the 2.5th to the 97.5th percentile of 2,000 draws: the percentile
interval of Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13. It is too
narrow for few volumes: for the mean of normal values it covers the truth in 81 % of cases with 4
volumes, 88 % with 8, 91 % with 15 and 93 % with 30.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Resampled = Literal["volumes", "slices", "nothing"]
RESAMPLES = 2000
TAILS = (0.025, 0.975)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A metric and its 95 % interval, which contains it.

    All three are NaN where the metric is not measurable, the ends alone where there are fewer than
    two volumes and fewer than two slices.
    """

    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


UNKNOWN = Estimate(value=math.nan)


class Bootstrap:
    """Draws with replacement of volumes, or of slices if there is one volume.

    Args:
        volumes: name of the volume of each item (a slice, or a volume as a whole).
        resamples: number of draws.
        seed: of the draws.
    """

    def __init__(
        self, volumes: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
    ) -> None:
        names, volume_of = np.unique(np.array(volumes, dtype=str), return_inverse=True)
        self.volumes = len(names)
        self._unit = volume_of if len(names) > 1 else np.arange(len(volumes))  # of each item
        self._units = len(np.unique(self._unit))
        self.resampled: Resampled = (
            "volumes" if len(names) > 1 else "slices" if self._units > 1 else "nothing"
        )
        rng = np.random.default_rng(seed)
        draws = rng.integers(max(1, self._units), size=(resamples, self._units))
        # c: how often each unit is in each draw, (draw, unit)
        drawn = [np.bincount(draw, minlength=self._units) for draw in draws]
        self._drawn: Floats = np.stack(drawn).astype(np.float64)

    def mean(
        self,
        values: Sequence[float],
        *,
        weights: Sequence[float] | None = None,
        transform: Callable[[float], float] = float,
    ) -> Estimate:
        """`transform` of the weighted mean of the values, one for each item; NaN does not count."""
        measured = np.array(values, dtype=np.float64)
        weight = np.ones(len(values)) if weights is None else np.array(weights, dtype=np.float64)
        known = ~np.isnan(measured)
        if not known.any():
            return UNKNOWN
        unit, weight = self._unit[known], weight[known]
        sums = np.bincount(unit, weight * measured[known], minlength=self._units)
        totals = np.bincount(unit, weight, minlength=self._units)
        return _estimate(
            sums.sum() / totals.sum(),
            self._drawn @ sums,
            self._drawn @ totals,
            enough=bool(np.count_nonzero(totals) > 1),
            transform=transform,
        )

    def crossed_mean(self, other: "Bootstrap", table: Floats) -> Estimate:
        """Mean of a table whose rows and columns are drawn independently of each other.

        The pigeonhole bootstrap of Owen (Annals of Applied Statistics 1, 2007), which is
        conservative: its variance is at least the mean's.

        Args:
            other: draws the columns; with as many resamples and another seed.
            table: (items of this one, items of the other), without NaN.
        """
        own, theirs = np.eye(self._units)[self._unit], np.eye(other._units)[other._unit]
        sums = own.T @ table @ theirs
        counts = np.outer(own.sum(axis=0), theirs.sum(axis=0))
        return _estimate(
            float(table.mean()),
            ((self._drawn @ sums) * other._drawn).sum(axis=1),
            ((self._drawn @ counts) * other._drawn).sum(axis=1),
            enough=self._units > 1,
        )

    def auc(self, above: Sequence[float], below: Sequence[float]) -> Estimate:
        """Chance that one item's `above` exceeds another's `below`; a tie counts one half."""
        if not above:
            return UNKNOWN
        high, low = np.array(above), np.array(below)
        wins = np.zeros((self._units, self._units))  # of one unit's items over another's
        for i in range(self._units):
            own = high[self._unit == i][:, None]
            score = (own > low).sum(axis=0) + 0.5 * (own == low).sum(axis=0)
            wins[i] = np.bincount(self._unit, score, minlength=self._units)
        counts = np.bincount(self._unit, minlength=self._units).astype(np.float64)
        return _estimate(
            wins.sum() / len(above) ** 2,
            ((self._drawn @ wins) * self._drawn).sum(axis=1),
            (self._drawn @ counts) ** 2,
            enough=self._units > 1,
        )


def _estimate(
    value: float,
    numerators: Floats,
    denominators: Floats,
    *,
    enough: bool,
    transform: Callable[[float], float] = float,
) -> Estimate:
    """`transform` of a value, with the interval of its draws."""
    value = transform(float(value))
    if not enough:
        return Estimate(value=value)
    usable = denominators > 0  # a draw can miss every item whose value is known
    means = (numerators[usable] / denominators[usable]).tolist()
    low, high = np.quantile([transform(mean) for mean in means], TAILS).tolist()
    # Where all volumes have the same value, rounding would put it outside.
    return Estimate(value=value, low=min(low, value), high=max(high, value))


def mean_over_volumes(
    values: Mapping[str, float], *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Mean of a metric that each volume has, for instance SSIM; NaN ones do not count.

    There is no interval where the mean is infinite (the PSNR of an exact copy).
    """
    known = {name: value for name, value in sorted(values.items()) if not math.isnan(value)}
    if any(math.isinf(value) for value in known.values()):
        return Estimate(value=sum(known.values()))
    return Bootstrap(list(known), resamples=resamples, seed=seed).mean(list(known.values()))
