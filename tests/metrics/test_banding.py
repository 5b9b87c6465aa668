import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from banding_removal.data.phantom.scan import make_volume
from banding_removal.data.phantom.spec import DEMO, PhantomSpec
from banding_removal.metrics.banding import BandingOfSlice, RegionBanding, banding_of_slice
from banding_removal.metrics.bootstrap import Estimate
from banding_removal.metrics.low_signal import Regions, low_signal_regions, volume_scale
from banding_removal.metrics.statistics import REGIONS, RegionSummary, summarize
from banding_removal.metrics.streaks import StreakEnergy

Floats = NDArray[np.floating]
SIZE = (112, 96)  # not square
SPEC = PhantomSpec(
    kspace_size=SIZE,
    target_size=SIZE,
    coils=DEMO.coils,
    acquired=(2, 94),
    slices=6,
    noise=DEMO.noise,
    fat_suppressed_share=0.5,
)


@pytest.fixture(scope="module")
def targets() -> Floats:
    """Four volumes in float64 (volume, slice, h, w), the first and last slice without anatomy."""
    return np.stack([make_volume(SPEC, seed).target for seed in range(4)]).astype(np.float64)


def streaks(rng: np.random.Generator, shape: tuple[int, ...], rms: float) -> Floats:
    """Streaks along the last axis, constant along it and white across, of exactly this rms."""
    lines = rng.standard_normal((*shape[:-1], 1))
    lines *= rms / np.sqrt(np.mean(lines**2, axis=(-2, -1), keepdims=True))
    return np.broadcast_to(lines, shape)


def streaks_down(rng: np.random.Generator, shape: tuple[int, ...], rms: float) -> Floats:
    """Streaks along the second last axis."""
    return streaks(rng, (*shape[:-2], shape[-1], shape[-2]), rms).swapaxes(-2, -1)


def banded(target: Floats, rms: float, seed: int = 0) -> tuple[Floats, Floats]:
    """A pair with streaks of this rms, as a fraction of each target's largest value's scale."""
    rng = np.random.default_rng(seed)
    amplitude = rms * volume_scale(target)
    return (
        target + streaks(rng, target.shape, amplitude),
        target + streaks_down(rng, target.shape, amplitude),
    )


def measure_volume(
    r_x: Floats, r_y: Floats | None, target: Floats, volume: str = "a"
) -> list[BandingOfSlice]:
    """Every slice of a volume, in the volume's unit."""
    q = volume_scale(target)
    return [
        banding_of_slice(
            r_x[i], None if r_y is None else r_y[i], t, scale=q, volume=volume, slice_index=i
        )
        for i, t in enumerate(target)
    ]


def measure(
    targets: Floats, change: Callable[[Floats, int], tuple[Floats, Floats]]
) -> list[BandingOfSlice]:
    """Every slice of every volume; `change(target, volume)` makes the pair."""
    results = []
    for i, target in enumerate(targets):
        r_x, r_y = change(target, i)
        results += measure_volume(r_x, r_y, target, f"volume{i}")
    return results


def low_signal(
    targets: Floats, change: Callable[[Floats, int], tuple[Floats, Floats]]
) -> RegionSummary:
    return summarize(measure(targets, change)).low_signal


def region_metrics(item: BandingOfSlice) -> list[float]:
    return [
        getattr(getattr(item, region), name)
        for region in REGIONS
        for name in ("contribution", "power", "signed_excess", "along", "across")
    ]


def test_injected_streaks_are_measured_with_their_rms_and_b_grows_with_it(targets: Floats) -> None:
    contributions = []
    for rms in (0.002, 0.005, 0.01, 0.02, 0.04):
        summary = low_signal(targets, lambda t, i, rms=rms: banded(t, rms, seed=i))  # type: ignore[misc]
        contributions.append(summary.contribution.value)
        tolerance = 0.05 if rms >= 0.005 else 0.2
        assert summary.signed_excess.value == pytest.approx(100 * rms, rel=tolerance)
    assert contributions[0] > 0
    assert all(b > 1.5 * a for a, b in pairwise(contributions))


def test_equal_reconstructions_have_no_banding_at_all(targets: Floats) -> None:
    target = targets[0]
    for image in (target, gaussian_filter(target, (0, 1.5, 1.5)), banded(target, 0.03)[0]):
        for item in measure_volume(image, image, target):
            assert not item.low_signal.reason
            assert item.low_signal.contribution == 0
            assert item.low_signal.power == item.low_signal.signed_excess == 0


def test_independent_noise_is_not_banding(targets: Floats) -> None:
    def noisy(target: Floats, i: int) -> tuple[Floats, Floats]:
        noise = np.random.default_rng(i).standard_normal((2, *target.shape))
        r_x, r_y = target + 0.02 * volume_scale(target) * noise
        return r_x, r_y

    summary = low_signal(targets, noisy)
    assert abs(summary.contribution.value) < 0.25
    assert abs(summary.signed_excess.value) < 0.25  # of noise of 2 %
    assert 0.35 < summary.auc.value < 0.65


def test_each_false_remedy_shows_in_one_of_the_numbers(targets: Floats) -> None:
    before = low_signal(targets, lambda t, i: banded(t, 0.02, seed=i))

    def dithered(target: Floats, i: int) -> tuple[Floats, Floats]:
        noise = np.random.default_rng(99 + i).standard_normal((2, *target.shape))
        r_x, r_y = np.stack(banded(target, 0.02, seed=i)) + 0.06 * volume_scale(target) * noise
        return r_x, r_y

    def blurred(target: Floats, i: int) -> tuple[Floats, Floats]:
        r_x, r_y = gaussian_filter(np.stack(banded(target, 0.02, seed=i)), (0, 0, 0.8, 0.8))
        return r_x, r_y

    def hatched(target: Floats, i: int) -> tuple[Floats, Floats]:
        rng = np.random.default_rng(99 + i)
        amplitude = 0.02 * volume_scale(target)
        r_x, r_y = banded(target, 0.02, seed=i)
        return (
            r_x + streaks_down(rng, target.shape, amplitude),
            r_y + streaks(rng, target.shape, amplitude),
        )

    dither, blur, hatch = (low_signal(targets, f) for f in (dithered, blurred, hatched))
    assert dither.contribution.value < 0.7 * before.contribution.value
    assert dither.signed_excess.value == pytest.approx(before.signed_excess.value, rel=0.1)
    assert 0 < blur.signed_excess.value < 0.5 * before.signed_excess.value
    assert blur.contribution.value > 0.7 * before.contribution.value
    assert abs(hatch.contribution.value) < 0.1 * before.contribution.value
    assert abs(hatch.signed_excess.value) < 0.3 * before.signed_excess.value
    assert hatch.across.value > before.across.value + 3
    assert hatch.along.value == pytest.approx(before.along.value, abs=0.2)


def test_streaks_across_the_phase_encode_axis_count_negative(targets: Floats) -> None:
    def swapped(target: Floats, i: int) -> tuple[Floats, Floats]:
        r_x, r_y = banded(target, 0.01, seed=i)
        return r_y, r_x

    right = low_signal(targets, lambda t, i: banded(t, 0.01, seed=i))
    wrong = low_signal(targets, swapped)
    assert wrong.contribution.value == pytest.approx(-right.contribution.value)
    assert wrong.signed_excess.value == pytest.approx(-right.signed_excess.value)
    assert wrong.signed_excess.value < -0.9
    assert (wrong.along.value, wrong.across.value) == pytest.approx(
        (right.across.value, right.along.value)
    )
    assert wrong.auc.value == pytest.approx(1 - right.auc.value)


def test_transposing_everything_changes_nothing(targets: Floats) -> None:
    target = targets[1, 2]
    r_x, r_y = banded(target, 0.01)
    upright = banding_of_slice(r_x, r_y, target)
    lying = banding_of_slice(r_y.T, r_x.T, target.T)
    np.testing.assert_allclose(region_metrics(upright), region_metrics(lying), rtol=1e-9, atol=1e-9)
    assert not upright.anatomy.reason


def test_lines_in_the_anatomy_do_not_count(targets: Floats) -> None:
    rng = np.random.default_rng(0)
    lined = targets + streaks(rng, targets.shape, 0.02 * float(np.median(targets.max((1, 2, 3)))))

    def noisy(target: Floats, i: int) -> tuple[Floats, Floats]:
        noise = np.random.default_rng(i).standard_normal((2, *target.shape))
        r_x, r_y = target + 0.01 * volume_scale(target) * noise
        return r_x, r_y

    items = measure(lined, noisy)
    summary = summarize(items).low_signal
    assert min(item.low_signal.r_x.ratio for item in items) > 3  # the lines are seen
    assert abs(summary.contribution.value) < 0.1
    assert abs(summary.signed_excess.value) < 0.3


def test_detectability_is_one_half_without_and_one_with_banding(targets: Floats) -> None:
    assert low_signal(targets, lambda t, _: (t, t)).auc.value == 0.5
    assert low_signal(targets, lambda t, i: banded(t, 0.04, seed=i)).auc.value > 0.99


def test_arrays_and_tensors_of_any_precision_give_the_same(targets: Floats) -> None:
    target = targets[0].astype(np.float32)
    q = volume_scale(target)
    images = [image[3].astype(np.float32) for image in (*banded(target, 0.01), target)]
    expected = banding_of_slice(*images, scale=q)
    tensors = [torch.from_numpy(image) for image in images]
    assert banding_of_slice(*tensors, scale=q) == expected
    doubles = [image.double().requires_grad_() for image in tensors]
    assert banding_of_slice(*doubles, scale=q) == expected
    assert not expected.anatomy.reason


def test_metrics_do_not_depend_on_the_unit(targets: Floats) -> None:
    target = targets[0, 2]
    r_x, r_y = banded(target, 0.01)
    small, large = (banding_of_slice(k * r_x, k * r_y, k * target) for k in (1e-6, 1e3))
    np.testing.assert_allclose(region_metrics(small), region_metrics(large), rtol=1e-9, atol=1e-9)


def test_an_empty_slice_is_measurable_with_its_volumes_scale_only(targets: Floats) -> None:
    empty = targets[0, 0]
    r_x, r_y = banded(empty, 0.1)
    own = banding_of_slice(r_x, r_y, empty)
    assert own.low_signal.reason == "fewer than 200 pixels"
    assert all(math.isnan(value) for value in region_metrics(own))
    item = banding_of_slice(r_x, r_y, empty, scale=volume_scale(targets[0]))
    assert item.low_signal.pixels == item.background.pixels == (SIZE[0] - 8) * (SIZE[1] - 8)
    assert item.background.contribution > 1
    assert item.anatomy.reason == "fewer than 200 pixels"


def test_what_cannot_be_measured_is_nan_with_the_reason(targets: Floats) -> None:
    target = targets[0, 2]
    r_x, r_y = banded(target, 0.01)
    nan, inf = r_x.copy(), r_y.copy()
    nan[0, 0], inf[50, 50] = np.nan, np.inf
    broken_target = target.copy()
    broken_target[3, 3] = np.nan
    zeros = np.zeros_like(target)
    cases = [
        (banding_of_slice(nan, r_y, target), "r_x not finite"),
        (banding_of_slice(nan, inf, target), "r_x, r_y not finite"),
        (banding_of_slice(r_x, r_y, broken_target), "target not finite"),
        (banding_of_slice(r_x, r_y, zeros), "scale not positive"),
        (banding_of_slice(r_x, r_y, zeros - 1), "scale not positive"),
        (banding_of_slice(r_x, r_y, target, scale=math.nan), "scale not positive"),
        (banding_of_slice(r_x, r_y, zeros + 1), "fewer than 200 pixels"),
        (banding_of_slice(r_x[:7, :5], r_y[:7, :5], target[:7, :5]), "fewer than 200 pixels"),
        (banding_of_slice(zeros, r_y, target), "r_x constant along an axis"),
        (banding_of_slice(r_x, zeros + 1e-4, target), "r_y constant along an axis"),
    ]
    for item, reason in cases:
        assert item.low_signal.reason == reason
        assert all(math.isnan(value) for value in region_metrics(item))
    summary = summarize([case[0] for case in cases[:1]]).low_signal
    assert summary.slices == 0 and summary.reasons == {"r_x not finite": 1}
    assert math.isnan(summary.contribution.value) and math.isnan(summary.auc.high)


def test_a_target_whose_background_is_zero_has_a_background() -> None:
    target = np.zeros((64, 64))
    target[20:44, 20:44] = 1.0
    r_x, r_y = banded(target, 0.01) + 0.003 * np.random.default_rng(0).standard_normal((2, 64, 64))
    item = banding_of_slice(r_x, r_y, target)
    assert item.background.pixels > 1000
    assert item.background.signed_excess == pytest.approx(1, rel=0.2)
    assert math.isnan(item.background.along) and math.isnan(item.background.across)
    assert summarize([item]).background.slices == 1


@pytest.mark.parametrize("coils", [1, 2, 6, 15])
def test_pure_noise_is_background_with_any_number_of_coils(coils: int) -> None:
    rng = np.random.default_rng(coils)
    noise = np.linalg.norm(rng.standard_normal((2 * coils, 120, 100)), axis=0)
    regions = low_signal_regions(noise, scale=10 * float(noise.mean()))
    assert regions.low_signal.sum() == 112 * 92
    assert regions.anatomy.sum() < 0.005 * 112 * 92


def test_regions_are_told_from_the_target_alone(targets: Floats) -> None:
    q = volume_scale(targets[3])
    of_slices = [low_signal_regions(target, scale=q) for target in targets[3]]
    regions = Regions(*(torch.stack(masks) for masks in zip(*of_slices, strict=True)))
    clean = make_volume(replace(SPEC, noise=(1e-9, 1e-9)), 3).target / q
    floor = float(np.median(targets[3][0])) / q  # the first slice is noise alone
    air = torch.from_numpy(clean < 0.3 * floor) & regions.low_signal
    assert air[2].sum() > 200
    assert (regions.background & air).sum() > 0.999 * air.sum()
    tissue = torch.from_numpy(clean > 1.2 * floor) & regions.low_signal
    assert tissue[2].sum() > 50
    assert (regions.anatomy & tissue).sum() > 0.8 * tissue.sum()  # thin structures are blurred
    bright = torch.from_numpy(targets[3] > 0.5 * q)
    assert (regions.low_signal & bright).sum() < 0.01 * bright.sum()
    assert not (regions.background & regions.anatomy).any()
    assert ((regions.background | regions.anatomy) == regions.low_signal).all()
    assert regions.anatomy[2].sum() > 100


def test_wrong_shapes_and_types_are_named() -> None:
    image = np.ones((20, 24))
    with pytest.raises(ValueError, match=r"r_y is \(24, 20\), but r_x is \(20, 24\)"):
        banding_of_slice(image, image.T, image)
    with pytest.raises(ValueError, match=r"target must be \(h, w\), not \(1, 20, 24\)"):
        banding_of_slice(image, image, image[None])
    with pytest.raises(ValueError, match="r_x is complex"):
        banding_of_slice(image + 1j, image, image)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"target must be \(h, w\), not \(1, 20, 24\)"):
        low_signal_regions(image[None])


def test_one_orientation_alone_sees_banding_but_takes_blur_for_some(targets: Floats) -> None:
    def summary(change: Callable[[Floats], Floats]) -> tuple[float, float]:
        items = []
        for i, target in enumerate(targets):
            items += measure_volume(change(target), None, target, f"volume{i}")
        low = summarize(items).low_signal
        assert all(math.isnan(m.value) for m in (low.along, low.across, low.auc))
        return low.contribution.value, low.signed_excess.value

    assert summary(lambda t: t) == (0, 0)
    contribution, excess = summary(lambda t: banded(t, 0.02)[0])
    assert contribution > 3
    assert excess == pytest.approx(2, rel=0.1)
    contribution, excess = summary(lambda t: banded(t, 0.02)[1])
    assert contribution < -3 and excess < -1.8
    assert abs(summary(lambda t: gaussian_filter(t, (0, 1, 1)))[1]) > 0.05
    constant = banding_of_slice(targets[0, 2], None, np.zeros(SIZE), scale=1.0)
    assert constant.low_signal.reason == "target constant along an axis"


def test_slices_of_one_orientation_and_of_both_are_not_mixed(targets: Floats) -> None:
    target = targets[0, 2]
    both = banding_of_slice(*banded(target, 0.01), target, volume="a")
    one = banding_of_slice(banded(target, 0.01)[0], None, target, volume="b")
    with pytest.raises(ValueError, match="one orientation and of both"):
        summarize([both, one])


# The summary.


def spread_out(volumes: int, per_volume: int, targets: Floats) -> list[BandingOfSlice]:
    """Slices with banding that differs between volumes much more than within."""
    items = []
    target = targets[0, 1]
    q = volume_scale(targets[0])
    for v in range(volumes):
        strength = 0.005 + 0.02 * ((v * 0.618034) % 1)
        for s in range(per_volume):
            r_x, r_y = banded(target, strength, seed=100 * v + s)
            items.append(banding_of_slice(r_x, r_y, target, scale=q, volume=f"v{v}", slice_index=s))
    return items


def widths(summary: RegionSummary) -> list[float]:
    return [estimate.high - estimate.low for estimate in estimates(summary)]


def estimates(summary: RegionSummary) -> list[Estimate]:
    names = ("contribution", "signed_excess", "along", "across", "auc")
    return [getattr(summary, name) for name in names]


def means(items: Sequence[BandingOfSlice]) -> list[float]:
    regions = [item.low_signal for item in items]
    down = [region.r_y.ratio for region in regions if region.r_y is not None]
    wins = [region.r_x.ratio > ratio for region in regions for ratio in down]
    return [
        float(np.mean([r.contribution for r in regions])),
        100 * math.sqrt(float(np.mean([r.power for r in regions]))),  # positive in these tests
        float(np.mean([r.along for r in regions])),
        float(np.mean([r.across for r in regions])),
        float(np.mean(wins)),
    ]


def test_the_summary_has_the_means_and_intervals_around_them(targets: Floats) -> None:
    items = spread_out(5, 3, targets)[:-1]  # volumes of different sizes
    summary = summarize(items).low_signal
    assert [metric.value for metric in estimates(summary)] == pytest.approx(means(items))
    assert all(metric.low <= metric.value <= metric.high for metric in estimates(summary))
    assert (summary.slices, summary.volumes, summary.resampled) == (14, 5, "volumes")
    assert summary.reasons == {}


def test_intervals_are_those_of_an_explicit_bootstrap_over_volumes(targets: Floats) -> None:
    items = spread_out(4, 2, targets)
    summary = summarize(items, resamples=4000).low_signal
    rng = np.random.default_rng(7)
    draws = []
    for _ in range(4000):
        chosen = rng.integers(4, size=4)
        draws.append(means([items[2 * v + s] for v in chosen for s in range(2)])[:4])
    expected = np.quantile(draws, (0.025, 0.975), axis=0)
    for metric, (low, high) in zip(estimates(summary)[:4], expected.T, strict=True):
        tolerance = 0.05 * (high - low)
        assert metric.low == pytest.approx(low, abs=tolerance)
        assert metric.high == pytest.approx(high, abs=tolerance)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)

    def random_slice(volume: int, index: int, offset: float) -> BandingOfSlice:
        r_x, r_y = (
            StreakEnergy(*(1e-4 * 10 ** (0.1 * rng.normal((sign * offset, 0), 0.5))))
            for sign in (1, -1)
        )
        region = RegionBanding(pixels=999, reason="", r_x=r_x, r_y=r_y, target=r_y)
        return BandingOfSlice(
            volume=f"v{volume}",
            slice_index=index,
            scale=1.0,
            low_signal=region,
            background=region,
            anatomy=region,
        )

    covered = 0
    for _ in range(100):
        items = [
            random_slice(volume, index, offset)
            for volume, offset in enumerate(rng.normal(2, 1, 15))
            for index in range(4)
        ]
        estimate = summarize(items, resamples=300).low_signal.contribution
        covered += estimate.low < 2 < estimate.high
    assert 85 <= covered <= 99


def test_intervals_narrow_with_volumes_and_are_wider_than_those_of_slices(targets: Floats) -> None:
    many = spread_out(16, 2, targets)
    few = [item for item in many if item.volume in ("v0", "v1", "v2", "v3")]
    wide, narrow = (widths(summarize(items).low_signal) for items in (few, many))
    assert narrow[0] < 0.7 * wide[0] and narrow[1] < 0.7 * wide[1]
    one_volume = [pickle.loads(pickle.dumps(item)) for item in many]
    relabelled = [
        BandingOfSlice(**{**vars(item), "volume": "all", "slice_index": i})
        for i, item in enumerate(one_volume)
    ]
    by_slices = summarize(relabelled).low_signal
    assert by_slices.resampled == "slices"
    assert widths(by_slices)[0] < narrow[0]  # slices of a volume are alike: too optimistic


def test_the_summary_depends_on_the_seed_but_not_on_the_order(targets: Floats) -> None:
    items = spread_out(8, 5, targets)
    shuffled = [items[i] for i in np.random.default_rng(0).permutation(len(items))]
    gathered = pickle.loads(pickle.dumps(shuffled[:5])) + shuffled[5:]
    assert summarize(items) == summarize(gathered)
    assert summarize(items) == summarize(items, seed=0)
    assert widths(summarize(items, seed=1).low_signal) != widths(summarize(items).low_signal)


def test_a_single_slice_has_no_interval_and_no_slices_have_no_metrics(targets: Floats) -> None:
    items = spread_out(1, 2, targets)
    one = summarize(items[:1]).low_signal
    assert one.resampled == "nothing" and one.contribution.value > 0
    assert math.isnan(one.contribution.low) and math.isnan(one.contribution.high)
    assert summarize(items).low_signal.contribution.low > 0
    none = summarize([]).low_signal
    assert (none.slices, none.volumes, none.resampled) == (0, 0, "nothing")
    assert math.isnan(none.signed_excess.value)


def test_a_slice_given_twice_is_an_error(targets: Floats) -> None:
    items = spread_out(2, 2, targets)
    with pytest.raises(ValueError, match="slice 1 of volume 'v0' was given 2 times"):
        summarize([*items, items[1]])


def test_slices_that_are_not_measurable_do_not_move_the_means(targets: Floats) -> None:
    items = spread_out(3, 2, targets)
    broken = np.full(SIZE, np.nan)
    bad = banding_of_slice(broken, broken, targets[0, 1], volume="v0", slice_index=9)
    assert summarize([*items, bad]).low_signal.contribution == (
        summarize(items).low_signal.contribution
    )
    assert summarize([*items, bad]).low_signal.reasons == {"r_x, r_y not finite": 1}
