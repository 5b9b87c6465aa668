import math

import numpy as np
import pytest

from banding_removal.metrics import bootstrap
from banding_removal.metrics.bootstrap import Bootstrap, Estimate, mean_over_volumes
from banding_removal.metrics.probe import VolumeProbe, summarize_volumes


def test_the_interval_of_a_mean_is_that_of_drawing_volumes_again() -> None:
    estimate = mean_over_volumes({"a": 0.0, "b": 1.0, "c": math.nan}, resamples=4000)
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.0, 1.0)


def test_a_single_volume_has_no_interval_and_nothing_has_no_mean() -> None:
    alone = mean_over_volumes({"a": 0.3})
    assert alone.value == 0.3
    assert math.isnan(alone.low) and math.isnan(alone.high)
    assert math.isnan(mean_over_volumes({"a": math.nan}).value)
    assert math.isnan(Bootstrap([]).mean([]).value)
    assert math.isnan(Bootstrap([]).auc([], []).value)


def test_an_infinite_mean_has_no_interval() -> None:
    estimate = mean_over_volumes({"a": math.inf, "b": 1.0})
    assert estimate.value == math.inf
    assert math.isnan(estimate.low)


def test_volumes_are_drawn_with_all_their_slices() -> None:
    volumes = ["a", "a", "a", "b", "c", "c"]
    values = np.array([1.0, 2.0, 4.0, 8.0, 3.0, 5.0])
    found = Bootstrap(volumes, resamples=4000).mean(values.tolist())
    rng = np.random.default_rng(7)
    slices = [np.flatnonzero(np.array(volumes) == name) for name in "abc"]
    means = [
        values[np.concatenate([slices[v] for v in rng.integers(3, size=3)])].mean()
        for _ in range(4000)
    ]
    assert found.value == values.mean()
    low, high = np.quantile(means, (0.025, 0.975))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.3)


def test_slices_are_drawn_if_there_is_one_volume() -> None:
    draws = Bootstrap(["a"] * 5)
    assert (draws.volumes, draws.resampled) == (1, "slices")
    found = draws.mean([1.0, 2.0, 3.0, 4.0, 5.0])
    assert 1 < found.low < found.value == 3 < found.high < 5


def test_banding_quality_and_probe_have_the_same_interval_of_the_same_values() -> None:
    by_volume = {"a": 0.5, "b": 0.9, "c": 0.6, "d": 1.0}
    expected = mean_over_volumes(by_volume)
    probed = [
        VolumeProbe(volume=name, fold=0, slices=3, balanced_accuracy=0.5, auc=value, paired=1.0)
        for name, value in by_volume.items()
    ]
    slices = [name for name in by_volume for _ in range(3)]
    for found in (
        summarize_volumes(probed).auc,
        Bootstrap(slices).mean([by_volume[name] for name in slices]),
    ):
        assert found.value == pytest.approx(expected.value)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_weights_count_as_so_many_items() -> None:
    weighted = Bootstrap(["a", "b", "c"]).mean([1.0, 2.0, 4.0], weights=[1, 2, 3])
    repeated = Bootstrap(["a", "b", "b", "c", "c", "c"]).mean([1.0, 2.0, 2.0, 4.0, 4.0, 4.0])
    assert weighted == repeated


def test_rounding_does_not_put_the_value_outside_its_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Found by search: all volumes have this value, but most draws round to another one.
    value, weights = 0.24855767636724513, [27, 19, 37, 28]
    found = Bootstrap(list("0123"), resamples=200).mean([value] * 4, weights=weights)
    assert found.low <= found.value <= found.high
    monkeypatch.setattr(bootstrap, "min", lambda low, _: low, raising=False)
    monkeypatch.setattr(bootstrap, "max", lambda high, _: high, raising=False)
    careless = Bootstrap(list("0123"), resamples=200).mean([value] * 4, weights=weights)
    assert not careless.low <= careless.value <= careless.high


def test_an_estimate_is_printed_with_its_interval() -> None:
    assert str(Estimate(value=0.5, low=0.25, high=0.75)) == "0.500 [0.250, 0.750]"
