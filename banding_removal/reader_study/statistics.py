"""Statistics of ratings: ranks, agreement, tests, and how many volumes a difference needs.

The unit of all tests and intervals is the volume, as everywhere in this project: slices of a volume
resemble each other. The slices themselves are the unit if there is one volume.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata, wilcoxon

from banding_removal.metrics.bootstrap import RESAMPLES, Bootstrap, Estimate

Floats = NDArray[np.float64]
LEVEL = 0.05  # of all tests together
POWER = 0.8
MOST_EXACT = 50  # differences, of an exact test
EFFICIENCY = 3 / math.pi  # of the signed-rank test, relative to the t-test, for normal differences


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two sets compared by one criterion; a rank of 1 is best."""

    criterion: str
    first: str
    second: str
    difference: Estimate  # mean rank of the first minus that of the second; below 0: first better
    win_rate: Estimate  # how often the first is rated better; a tie counts one half
    p: float  # Wilcoxon signed-rank test, two-sided, over volumes
    p_holm: float  # corrected for all comparisons of the study
    volumes_needed: float  # that would show the difference asked for; NaN: not known


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement of ratings by one criterion; NaN where it cannot be measured."""

    criterion: str
    between: float  # Krippendorff's alpha between readers
    within: float  # alpha between the first and the second rating of repeated cases
    identical: float  # share of these ratings that are equal


class Draws:
    """The bootstrap over volumes and readers.

    Args:
        volumes: the volume of each case.
        readers: number of readers.
        seed: of all draws.
        resamples: number of draws.
    """

    def __init__(
        self, volumes: Sequence[str], readers: int, seed: int, resamples: int = RESAMPLES
    ) -> None:
        names = [str(reader) for reader in range(readers)]
        self._cases = Bootstrap(volumes, seed=seed, resamples=resamples)
        self._readers = Bootstrap(names, seed=seed + 1, resamples=resamples)

    def mean(self, table: Floats) -> Estimate:
        """Mean of (reader, case), with its 95 % interval."""
        return self._cases.crossed_mean(self._readers, table.T)


def ranks(values: Floats, *, highest_is_best: bool) -> Floats:
    """Ranks along the last axis, 1 is best; equal values have the mean of their ranks."""
    ranked: Floats = rankdata(-values if highest_is_best else values, axis=-1)
    return ranked


def ordinal_alpha(values: Floats) -> float:
    """Krippendorff's alpha for ordinal data: 1 is perfect agreement, 0 is what chance gives.

    Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011).

    Args:
        values: (observer, unit), NaN where an observer has not rated a unit.

    Returns:
        NaN if no unit was rated twice, or all ratings are equal.
    """
    values = values[:, (~np.isnan(values)).sum(axis=0) > 1]
    levels = np.unique(values[~np.isnan(values)])
    # how often each unit has each level, (unit, level)
    counts = (values[:, :, None] == levels).sum(axis=0).astype(np.float64)
    weights = 1 / (counts.sum(axis=1) - 1)
    coincidences = counts.T @ (counts * weights[:, None]) - np.diag(weights @ counts)
    of_level = coincidences.sum(axis=0)
    middle = of_level.cumsum() - of_level / 2
    distances = (middle[:, None] - middle) ** 2
    expected = float((np.outer(of_level, of_level) * distances).sum())
    if expected == 0:
        return math.nan
    observed = float((coincidences * distances).sum())
    return 1 - (float(of_level.sum()) - 1) * observed / expected


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected by Holm's step-down method (Scandinavian Journal of Statistics, 1979)."""
    p = np.array(p_values)
    order = p.argsort()
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = steps.clip(max=1)
    return [float(value) for value in corrected]


def signed_rank_p(differences: Floats) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test; zeros are dropped.

    Exact for up to 50 differences, also with ties, from the distribution of the sum of the positive
    ranks: the coefficients of prod_i (1 + x^r_i) / 2. (SciPy's is exact only without ties, or by
    permutations that take seconds.) Beyond, SciPy's normal approximation.

    Returns:
        1 if no difference is other than zero.
    """
    known = np.round(differences, 9)  # equal differences may differ by rounding
    known = known[known != 0]
    if not len(known):
        return 1.0
    if len(known) > MOST_EXACT:
        return float(wilcoxon(known, method="approx").pvalue)
    doubled = (2 * rankdata(np.abs(known))).astype(int)  # ranks of ties are halves
    distribution = np.ones(1)
    for rank in doubled:
        step = np.zeros(rank + 1)
        step[[0, -1]] = 0.5
        distribution = np.convolve(distribution, step)
    positive = int(doubled[known > 0].sum())
    tails = distribution[: positive + 1].sum(), distribution[positive:].sum()
    return min(1.0, 2 * float(min(tails)))


def comparisons_of(sets: int, criteria: int) -> int:
    """Number of tests in a study: every pair of sets by every criterion."""
    return math.comb(sets, 2) * criteria


def fewest_volumes(comparisons: int) -> int:
    """Volumes below which not even a unanimous verdict is significant after Holm's correction.

    The signed-rank test of n differences has no p-value below 2 / 2^n.
    """
    return math.ceil(math.log2(2 * comparisons / LEVEL))


def volumes_needed(deviation: float, difference: float, comparisons: int) -> float:
    """Volumes with which a mean difference is significant in 80 % of studies.

    n = pi / 3 ((z_(1 - a / 2m) + z_0.8) s / d)^2, rounded up: the paired t-test's normal
    approximation, at the level of Bonferroni's correction, over the efficiency of the signed-rank
    test; at least `fewest_volumes`.

    Args:
        deviation: s, standard deviation of the differences between volumes; NaN if not known.
        difference: d, in the same unit.
        comparisons: m, of the study.
    """
    z = norm.ppf(1 - LEVEL / (2 * comparisons)) + norm.ppf(POWER)
    needed = (z * deviation / difference) ** 2 / EFFICIENCY
    if math.isnan(needed):
        return math.nan
    return max(math.ceil(needed), fewest_volumes(comparisons))


def compare_sets(
    ranked: dict[str, Floats],
    sets: Sequence[str],
    volumes: Sequence[str],
    *,
    difference: float,
    draws: Draws,
) -> list[Comparison]:
    """Every pair of sets by every criterion.

    Args:
        ranked: by criterion, ranks (reader, case, set).
        sets: their names.
        volumes: the volume of each case.
        difference: of mean ranks, for which the number of volumes is asked.
        draws: the bootstrap of these cases and readers.
    """
    unit = np.unique(np.array(volumes), return_inverse=True)[1]
    if not unit.any():
        unit = np.arange(len(volumes))
    pairs = list(itertools.combinations(range(len(sets)), 2))
    gaps = [
        (criterion, pair, values[..., pair[0]] - values[..., pair[1]])
        for criterion, values in ranked.items()
        for pair in pairs
    ]
    by_volume = [np.bincount(unit, gap.mean(axis=0)) / np.bincount(unit) for _, _, gap in gaps]
    p_values = [signed_rank_p(differences) for differences in by_volume]
    corrected = holm(p_values)
    return [
        Comparison(
            criterion=criterion,
            first=sets[pair[0]],
            second=sets[pair[1]],
            difference=draws.mean(gap),
            win_rate=draws.mean((1 - np.sign(gap)) / 2),
            p=p_values[i],
            p_holm=corrected[i],
            volumes_needed=volumes_needed(_deviation(by_volume[i]), difference, len(gaps)),
        )
        for i, (criterion, pair, gap) in enumerate(gaps)
    ]


def _deviation(differences: Floats) -> float:
    return float(differences.std(ddof=1)) if len(differences) > 1 else math.nan


def agreement(criterion: str, first: Floats, again: Floats) -> Agreement:
    """Agreement between and within readers.

    Args:
        criterion: its name.
        first: ordinal ratings (reader, case, set).
        again: of repeated cases, the second ratings; NaN elsewhere.
    """
    repeated = ~np.isnan(again)
    twice = np.stack([first[repeated], again[repeated]])
    return Agreement(
        criterion=criterion,
        between=ordinal_alpha(first.reshape(len(first), -1)),
        within=ordinal_alpha(twice),
        identical=float((twice[0] == twice[1]).mean()) if repeated.any() else math.nan,
    )
