import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import rankdata, wilcoxon

from banding_removal.metrics.bootstrap import Bootstrap
from banding_removal.reader_study.blinding import Reader
from banding_removal.reader_study.cases import Case
from banding_removal.reader_study.key import Key
from banding_removal.reader_study.ratings import Ratings
from banding_removal.reader_study.score import score
from banding_removal.reader_study.statistics import (
    Draws,
    agreement,
    compare_sets,
    fewest_volumes,
    holm,
    ordinal_alpha,
    ranks,
    signed_rank_p,
    volumes_needed,
)
from tests.support.studies import simulated_values

NAN = math.nan
# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C.
KRIPPENDORFF = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
)


def key_of(sets: int, cases: int, volumes: int, criteria: int = 4, readers: int = 4) -> Key:
    return Key(
        study="s",
        rating="rank",
        criteria=tuple(f"criterion {i}" for i in range(criteria)),
        sets=tuple("abcd"[:sets]),
        cases=tuple(
            Case(volume=f"v{i % volumes}", slice_index=i, orientation="x", low_anatomy=i == 0)
            for i in range(cases)
        ),
        readers=tuple(Reader(name=f"reader {i}", token=str(i), views=()) for i in range(readers)),
    )


def test_alpha_equals_krippendorffs_own_example() -> None:
    assert ordinal_alpha(KRIPPENDORFF) == pytest.approx(0.815, abs=5e-4)


# en.wikipedia.org/wiki/Krippendorff's_alpha: three coders, fifteen units.
WIKIPEDIA = np.array(
    [
        [NAN, NAN, NAN, NAN, NAN, 3, 4, 1, 2, 1, 1, 3, 3, NAN, 3],
        [1, NAN, 2, 1, 3, 3, 4, 3, NAN, NAN, NAN, NAN, NAN, NAN, NAN],
        [NAN, NAN, 2, 1, 3, 4, 4, NAN, 2, 1, 1, 3, 3, NAN, 4],
    ]
)


def alpha_by_pairs(values: np.ndarray, distance: Callable[[float, float], float]) -> float:
    """1 - observed / expected disagreement, pair by pair, as Hayes and Krippendorff define it."""
    units = [unit[~np.isnan(unit)] for unit in values.T]
    units = [unit for unit in units if len(unit) > 1]
    pairs = [(distance(a, b), len(u) - 1) for u in units for a, b in itertools.permutations(u, 2)]
    everything = np.concatenate(units)
    observed = sum(d / n for d, n in pairs) / len(everything)
    expected = np.mean([distance(a, b) for a, b in itertools.permutations(everything, 2)])
    return float(1 - observed / expected)


def test_alpha_equals_its_definition_which_gives_the_published_values() -> None:
    assert alpha_by_pairs(WIKIPEDIA, lambda a, b: a != b) == pytest.approx(0.691, abs=5e-4)
    assert alpha_by_pairs(WIKIPEDIA, lambda a, b: (a - b) ** 2) == pytest.approx(0.811, abs=5e-4)
    paired = WIKIPEDIA[:, (~np.isnan(WIKIPEDIA)).sum(axis=0) > 1]

    def ordinal(a: float, b: float) -> float:
        low, high = min(a, b), max(a, b)
        ends = (paired == low).sum() + (paired == high).sum()
        return float(((paired >= low) & (paired <= high)).sum() - ends / 2) ** 2

    expected = alpha_by_pairs(WIKIPEDIA, lambda a, b: 0.0 if a == b else ordinal(a, b))
    assert ordinal_alpha(WIKIPEDIA) == pytest.approx(expected)


def test_alpha_is_one_for_equal_ratings_and_unknown_without_a_difference() -> None:
    assert ordinal_alpha(np.array([[1.0, 2, 3], [1, 2, 3]])) == 1
    assert ordinal_alpha(np.array([[1.0, 2], [2, 1]])) < 0
    assert math.isnan(ordinal_alpha(np.ones((2, 5))))
    assert math.isnan(ordinal_alpha(np.array([[1.0, NAN], [NAN, 2]])))


def test_holms_correction_equals_the_published_example() -> None:
    # en.wikipedia.org/wiki/Holm-Bonferroni_method: the first and the last are rejected at 0.05
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]


def test_the_signed_rank_test_equals_the_published_example() -> None:
    # Hollander & Wolfe (1973), p. 29: depression scores of nine patients, one-sided p 0.0195
    before = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
    after = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]
    assert signed_rank_p(np.subtract(before, after)) == pytest.approx(2 * 0.01953, abs=1e-4)
    assert signed_rank_p(np.zeros(5)) == 1


def test_the_signed_rank_test_is_exact_with_ties() -> None:
    differences = np.array([1.0, -1, 1, 2, 2, -3, 4, 0.1 + 0.2, 0.3, 0])
    ranks_of = rankdata(np.abs(np.round(differences[:-1], 9)))
    signs = np.array(list(itertools.product((0, 1), repeat=9)))
    sums = signs @ ranks_of
    found = ranks_of[differences[:-1] > 0].sum()
    assert signed_rank_p(differences) == pytest.approx(2 * (sums >= found).mean())
    rng = np.random.default_rng(0)
    for count in (5, 30, 80):
        values = rng.normal(0.2, 1, count)
        assert signed_rank_p(values) == pytest.approx(wilcoxon(values).pvalue)


def test_below_the_fewest_volumes_a_unanimous_verdict_is_not_significant() -> None:
    fewest = fewest_volumes(12)
    unanimous = {n: signed_rank_p(np.full(n, -1.0)) for n in (fewest - 1, fewest)}
    assert 12 * unanimous[fewest] < 0.05 < 12 * unanimous[fewest - 1]


def test_rows_and_columns_of_a_crossed_mean_are_drawn_independently() -> None:
    rng = np.random.default_rng(1)
    rows, columns = rng.standard_normal(40), rng.standard_normal(30)
    found = Bootstrap(list(map(str, range(40))), seed=0).crossed_mean(
        Bootstrap(list(map(str, range(30))), seed=1), rows[:, None] + columns
    )
    expected = math.hypot(rows.std() / 40**0.5, columns.std() / 30**0.5)
    assert found.value == pytest.approx(rows.mean() + columns.mean())
    assert (found.high - found.low) / 3.92 == pytest.approx(expected, rel=0.07)


def test_cases_of_a_volume_are_drawn_together_and_one_reader_has_an_interval() -> None:
    table = np.array([[0.0, 0, 1, 1]])  # (reader, case)
    found = Draws(["a", "a", "b", "b"], 1, seed=0).mean(table)
    assert (found.value, found.low, found.high) == (0.5, 0, 1)


def test_ties_have_mean_ranks_and_a_high_score_is_best() -> None:
    assert ranks(np.array([1.0, 1, 3]), highest_is_best=False).tolist() == [1.5, 1.5, 3]
    assert ranks(np.array([5.0, 1, 3]), highest_is_best=True).tolist() == [1, 3, 2]


def test_agreement_within_readers_comes_from_the_repeated_cases() -> None:
    first = np.array([[[1.0, 2], [2, 1], [1, 2]]])
    again = np.array([[[1.0, 2], [NAN, NAN], [2, 1]]])
    found = agreement("noise", first, again)
    assert found.identical == 0.5
    assert found.within == ordinal_alpha(np.array([[1.0, 2, 1, 2], [1, 2, 2, 1]]))
    assert math.isnan(agreement("noise", first, np.full_like(first, NAN)).within)


def test_scores_recover_a_known_ranking() -> None:
    key = key_of(sets=3, cases=40, volumes=40)
    rng = np.random.default_rng(3)
    # the criteria disagree: by the last one, all sets are equal
    quality = np.array([[2.0, 1, 0], [0, 1, 2], [0, 2, 0], [0, 0, 0]])
    values = simulated_values(key, quality, 0.5, rng)
    first = {c: values[:, :, i] for i, c in enumerate(key.criteria)}
    again = {c: np.where(np.arange(40)[:, None] < 4, v, NAN) for c, v in first.items()}
    readers = tuple(reader.name for reader in key.readers)
    ratings = Ratings(readers=readers, first=first, again=again, seconds=np.ones(4))
    found = score(key, ratings, difference=0.5, seed=0)
    order = {
        criterion: [
            item.set
            for item in sorted(found.means, key=lambda item: item.rank.value)
            if (item.criterion, item.slices) == (criterion, "all")
        ]
        for criterion in key.criteria
    }
    assert order["criterion 0"] == ["a", "b", "c"]
    assert order["criterion 1"] == ["c", "b", "a"]
    assert order["criterion 2"][0] == "b"
    significant = {
        (item.criterion, item.first, item.second)
        for item in found.comparisons
        if item.p_holm < 0.05
    }
    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    assert significant == {
        *(("criterion 0", *pair) for pair in pairs),
        *(("criterion 1", *pair) for pair in pairs),
        ("criterion 2", "a", "b"),
        ("criterion 2", "b", "c"),
    }
    best = found.comparisons[0]
    assert best.difference.high < 0 and best.win_rate.low > 0.5
    assert found.agreements[0].between > 0.5 > found.agreements[3].between
    assert [item.within for item in found.agreements] == pytest.approx([1] * 4)
    assert {item.slices for item in found.means} == {"all", "with anatomy", "mostly air"}


@pytest.mark.parametrize("volumes", [10, 40])  # four slices of each volume, or one
def test_without_a_difference_95_percent_of_studies_find_none(volumes: int) -> None:
    key = key_of(sets=3, cases=40, volumes=volumes)
    rng = np.random.default_rng(0)
    studies, wrong = 200, 0
    draws = Draws([case.volume for case in key.cases], 4, 0, resamples=2)
    for _ in range(studies):
        values = simulated_values(key, np.zeros((4, 3)), 1.0, rng)
        found = compare_sets(
            {c: values[:, :, i] for i, c in enumerate(key.criteria)},
            key.sets,
            [case.volume for case in key.cases],
            difference=0.5,
            draws=draws,
        )
        wrong += min(item.p_holm for item in found) < 0.05
    # 10 are expected, with a standard deviation of 3.1
    assert wrong <= 19


def test_so_many_volumes_show_a_difference_in_80_percent_of_studies() -> None:
    rng = np.random.default_rng(2)
    needed = volumes_needed(1.0, 0.5, 4)
    detected = [signed_rank_p(rng.normal(0.5, 1.0, int(needed))) < 0.05 / 4 for _ in range(400)]
    assert np.mean(detected) == pytest.approx(0.8, abs=0.06)
    assert volumes_needed(0.0, 0.5, 4) == fewest_volumes(4)
    assert math.isnan(volumes_needed(NAN, 0.5, 4))
