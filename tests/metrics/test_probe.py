from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from banding_removal.metrics import probe as probe_module
from banding_removal.metrics import probe_classifier
from banding_removal.metrics.bootstrap import Estimate
from banding_removal.metrics.low_signal_view import low_signal_view
from banding_removal.metrics.probe import (
    MIN_SIDE,
    Pair,
    ProbeResult,
    probe,
)
from banding_removal.metrics.probe_classifier import OrientationClassifier, View

SIZE = (40, 40)


def anatomy(generator: torch.Generator, size: tuple[int, int] = SIZE) -> Tensor:
    """Tall ellipses on background noise, rms 1 % of the signal; in fastMRI's unit."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing="ij")
    a, b, level = torch.rand(3, generator=generator)
    image = ((x / (0.3 + 0.4 * a)) ** 2 + (y / (0.6 + 0.4 * b)) ** 2 < 1).float()
    image = image - (0.3 + 0.6 * level) * ((x + 0.1) ** 2 + y**2 < 0.05 + 0.1 * a).float()
    return 1e-4 * (image + 0.01 * torch.randn(size, generator=generator))


def streaks(generator: torch.Generator, size: tuple[int, int], rms: float) -> Tensor:
    """Streaks along x, of the rms given in the anatomy's signal: rows of equal values."""
    return 1e-4 * rms * torch.randn(size[0], 1, generator=generator).expand(size)


def banded(
    rms: float,
    *,
    volumes: int = 4,
    slices: int = 4,
    sizes: Sequence[tuple[int, int]] = (SIZE,),
    noise: float = 0.0,
    seed: int = 0,
) -> list[Pair]:
    """Volumes of one anatomy in both images, plus streaks along x or y and fresh noise."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for volume in range(volumes):
        size = sizes[volume % len(sizes)]
        for index in range(slices):
            clean = anatomy(generator, size)
            grain = 1e-4 * noise * torch.randn(2, *size, generator=generator)
            along_x = streaks(generator, size, rms)
            along_y = streaks(generator, size[::-1], rms).T
            r_x, r_y = clean + along_x + grain[0], clean + along_y + grain[1]
            pairs.append(Pair(volume=f"vol{volume}", slice_index=index, r_x=r_x, r_y=r_y))
    return pairs


def same_in_both(pairs: list[Pair]) -> list[Pair]:
    return [replace(pair, r_y=pair.r_x) for pair in pairs]


@pytest.fixture(scope="module")
def streaked() -> ProbeResult:
    return probe(banded(0.01), steps=50)


def test_streaks_of_one_percent_are_told_in_volumes_never_seen(streaked: ProbeResult) -> None:
    for metric in (streaked.balanced_accuracy, streaked.auc, streaked.paired):
        assert metric.value > 0.9
        assert metric.low > 0.6


def test_streaks_below_the_noise_are_still_told() -> None:
    result = probe(banded(0.005), folds=2, steps=100)
    assert result.balanced_accuracy.low > 0.5
    assert result.auc.low > 0.6


def test_equal_images_are_told_by_chance_alone_to_the_last_digit() -> None:
    # The streaks stay: they are the same in both, and tell the classifier nothing.
    result = probe(same_in_both(banded(0.01)), steps=30)
    half = Estimate(value=0.5, low=0.5, high=0.5)
    assert result.balanced_accuracy == result.auc == result.paired == half


def test_isotropic_noise_is_told_by_chance_within_the_interval() -> None:
    result = probe(banded(0.0, noise=0.02, volumes=6), folds=3, steps=40)
    for metric in (result.balanced_accuracy, result.auc, result.paired):
        assert metric.low <= 0.5 <= metric.high
        assert abs(metric.value - 0.5) < 0.2
    assert result.auc.low < result.auc.high


def test_size_and_volume_tell_nothing() -> None:
    sizes = (SIZE, (60, 40), (40, 60), (90, 90))
    pairs = same_in_both(banded(0.02, sizes=sizes, slices=2))
    assert probe(pairs, steps=20).balanced_accuracy.value == 0.5


def test_volumes_of_mixed_sizes_that_are_not_square_are_probed_together() -> None:
    sizes = ((48, 33), (70, 90), (33, 48), (100, 41))
    result = probe(banded(0.02, sizes=sizes), folds=2, steps=60)
    assert result.balanced_accuracy.value > 0.9


def test_images_of_320_x_320_and_of_the_smallest_size_are_probed() -> None:
    sizes = ((320, 320), (MIN_SIDE, MIN_SIDE))
    result = probe(banded(0.02, sizes=sizes, volumes=2, slices=1), steps=2)
    assert [volume.slices for volume in result.volumes] == [1, 1]


def test_what_one_volume_teaches_is_tested_on_the_other() -> None:
    # Opposite labels: right on the training volume, so wrong on the held-out one.
    pairs = banded(0.03, volumes=2, slices=6)
    swapped = [replace(p, r_x=p.r_y, r_y=p.r_x) if p.volume == "vol1" else p for p in pairs]
    result = probe(swapped, steps=80)
    assert result.balanced_accuracy.value < 0.1
    assert result.auc.value < 0.1


def test_each_volume_is_tested_once_by_a_classifier_that_never_saw_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train, logits = probe_classifier.train, probe_classifier.logits_of
    viewed = probe_module._viewed
    volume_of: dict[int, str] = {}  # by identity of the images
    seen: dict[OrientationClassifier, set[str]] = {}
    tested: list[str] = []

    def spy_viewed(pair: Pair, view: View) -> Tensor:
        images = viewed(pair, view)
        volume_of[id(images)] = pair.volume
        return images

    def spy_train(slices: Sequence[Tensor], *rest: object) -> OrientationClassifier:
        classifier = train(slices, *rest)  # type: ignore[arg-type]
        seen[classifier] = {volume_of[id(images)] for images in slices}
        return classifier

    def spy_logits(classifier: OrientationClassifier, images: Tensor) -> Tensor:
        assert volume_of[id(images)] not in seen[classifier]
        tested.append(volume_of[id(images)])
        return logits(classifier, images)

    monkeypatch.setattr(probe_module, "_viewed", spy_viewed)
    monkeypatch.setattr(probe_module, "train", spy_train)
    monkeypatch.setattr(probe_module, "logits_of", spy_logits)
    result = probe(banded(0.01, volumes=5, slices=2), folds=3, steps=1)
    assert sorted(tested) == sorted(2 * [f"vol{i}" for i in range(5)])
    assert [volume.fold for volume in result.volumes] == [0, 1, 2, 0, 1]
    assert [len(volumes) for volumes in seen.values()] == [3, 3, 4]


def test_the_same_seed_gives_the_same_metrics_in_any_order_of_slices() -> None:
    pairs = banded(0.004, slices=3)
    first = probe(pairs, steps=8, seed=4)
    torch.manual_seed(99)
    assert probe(pairs[::-1], steps=8, seed=4) == first
    assert probe(pairs, steps=8, seed=5) != first


def test_global_random_states_are_neither_read_nor_moved() -> None:
    torch.manual_seed(7)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()
    probe(banded(0.01, volumes=2, slices=1), steps=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert str(np.random.get_state()) == str(numpy_before)


def test_intervals_contain_the_estimate_and_grow_with_the_spread_over_volumes(
    streaked: ProbeResult,
) -> None:
    by_volume = streaked.volumes[0]
    alike = [replace(by_volume, volume=str(i), auc=0.75) for i in range(6)]
    spread = [replace(v, auc=0.75 + 0.25 * (-1) ** i) for i, v in enumerate(alike)]
    more = [replace(v, volume=f"{i}{v.volume}") for i in range(8) for v in spread]
    assert probe_module.summarize_volumes(alike).auc == Estimate(value=0.75, low=0.75, high=0.75)
    few = probe_module.summarize_volumes(spread).auc
    many = probe_module.summarize_volumes(more).auc
    assert 0.5 <= few.low < many.low < 0.75 < many.high < few.high <= 1.0
    assert few.value == many.value == 0.75


def test_slices_of_one_volume_do_not_narrow_the_interval(streaked: ProbeResult) -> None:
    volumes = [
        replace(streaked.volumes[0], volume=name, auc=value)
        for name, value in (("a", 0.25), ("b", 0.5), ("c", 1.0))
    ]
    many_slices = [replace(volume, slices=40) for volume in volumes]
    assert (
        probe_module.summarize_volumes(many_slices).auc
        == probe_module.summarize_volumes(volumes).auc
    )


def test_volumes_weigh_by_their_slices(streaked: ProbeResult) -> None:
    volumes = [
        replace(streaked.volumes[0], volume=name, slices=n, balanced_accuracy=value)
        for name, n, value in (("a", 1, 1.0), ("b", 3, 0.6))
    ]
    assert probe_module.summarize_volumes(volumes).balanced_accuracy.value == pytest.approx(0.7)


def test_metrics_of_known_logits() -> None:
    logits = torch.tensor([[-2.0, 1.0], [0.5, 0.5], [-1.0, 0.0]])
    found = probe_module._volume_probe("v", 0, logits)
    assert found.balanced_accuracy == pytest.approx((2 / 3 + 2.5 / 3) / 2)
    assert found.auc == pytest.approx((3 + 1.5 + 3) / 9)  # by r_y: 1.0, 0.5, 0.0 against all r_x
    assert found.paired == pytest.approx(2.5 / 3)


def test_the_unit_does_not_matter_and_arrays_do_as_well() -> None:
    pairs = banded(0.01, volumes=2, slices=2)
    arrays = [
        replace(p, r_x=np.asarray(p.r_x, np.float64) * 1e9, r_y=np.asarray(p.r_y, np.float64) * 1e9)
        for p in pairs
    ]
    expected, result = probe(pairs, steps=5), probe(arrays, steps=5)
    assert result.auc.value == pytest.approx(expected.auc.value, abs=1e-3)


def test_empty_slices_and_outliers_give_finite_metrics() -> None:
    pairs = banded(0.01, volumes=2, slices=2)
    empty = torch.zeros(SIZE)
    spike = empty.clone()
    spike[3, 4] = 1e30
    pairs[0] = replace(pairs[0], r_x=empty, r_y=empty)
    pairs[2] = replace(pairs[2], r_x=spike, r_y=empty)
    result = probe(pairs, steps=5)
    assert 0 <= result.auc.low <= result.auc.value <= result.auc.high <= 1


def test_the_probe_trains_where_the_caller_wants_no_gradients() -> None:
    pairs = banded(0.01, volumes=2, slices=2)
    expected = probe(pairs, steps=3)
    with torch.inference_mode():
        assert probe(banded(0.01, volumes=2, slices=2), steps=3) == expected
        assert torch.is_inference_mode_enabled()
    with torch.no_grad():
        assert probe(pairs, steps=3) == expected


def test_the_classifier_answers_the_opposite_for_the_transposed_image() -> None:
    classifier = probe_classifier.fresh_classifier(
        torch.Generator().manual_seed(0), torch.device("cpu")
    )
    x = torch.randn(2, 1, 21, 34, generator=torch.Generator().manual_seed(1))
    logits = classifier(x)
    assert logits.shape == (2, 5, 8)
    assert logits.abs().max() > 1e-3
    torch.testing.assert_close(classifier(x.swapaxes(-2, -1)), -logits.swapaxes(-2, -1))


def test_a_classifier_that_diverges_ends_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_classifier, "LR", float("inf"))
    with pytest.raises(RuntimeError, match="vol0 are not finite"):
        probe(banded(0.01, volumes=2, slices=1), steps=2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_probe_runs_on_a_gpu() -> None:
    result = probe(banded(0.01), steps=50, device="cuda")
    assert result.balanced_accuracy.value > 0.9
    assert probe(same_in_both(banded(0.01)), steps=5, device="cuda").auc.value == 0.5


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_volumes_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"needs at least two, got {count}"):
        probe(banded(0.01, volumes=count))


@pytest.mark.parametrize(("folds", "steps"), [(1, 10), (4, 0)])
def test_no_folds_and_no_steps_are_refused(folds: int, steps: int) -> None:
    with pytest.raises(ValueError, match=f"at least 2 folds and 1 step, got {folds} and {steps}"):
        probe(banded(0.01), folds=folds, steps=steps)


def test_streaks_are_told_where_the_probe_may_look_and_by_chance_elsewhere() -> None:
    # They are in the upper half alone; the blurs of the local contrast reach 18 pixels.
    row = torch.arange(SIZE[0])[:, None].expand(SIZE)
    upper = row < 20
    pairs = []
    for pair in banded(0.02):
        r_x, r_y = map(torch.as_tensor, (pair.r_x, pair.r_y))
        pairs.append(replace(pair, r_y=torch.where(upper, r_y, r_x)))

    def seeing(mask: Tensor) -> float:
        found = probe([replace(pair, seen=mask) for pair in pairs], steps=50)
        return found.balanced_accuracy.value

    assert seeing(upper) > 0.9
    assert seeing(row >= 38) == pytest.approx(0.5, abs=0.1)
    assert seeing(torch.zeros(SIZE, dtype=torch.bool)) == 0.5


@pytest.mark.parametrize("seen", [torch.ones(SIZE), torch.ones(40, 41, dtype=torch.bool)])
def test_a_mask_that_does_not_fit_is_refused(seen: Tensor) -> None:
    pairs = banded(0.01, volumes=2, slices=2)
    pairs[1] = replace(pairs[1], seen=seen)
    with pytest.raises(ValueError, match=r"^vol0 slice 1: seen is .*, not bool \(40, 40\)"):
        probe(pairs)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.ones(40, 41), r"r_y \(40, 41\) are not both \(h, w\)"),
        (torch.ones(1, 40, 40), r"are not both \(h, w\)"),
        (torch.full(SIZE, torch.nan), "r_y is not finite"),
        (torch.where(torch.eye(40) > 0, torch.inf, 0.0), "r_y is not finite"),
        (torch.ones(SIZE, dtype=torch.complex64), "r_y is complex"),
    ],
)
def test_unusable_images_are_refused_by_volume_and_slice(image: Tensor, message: str) -> None:
    pairs = banded(0.01, volumes=3, slices=2)
    pairs[3] = replace(pairs[3], r_y=image)
    with pytest.raises(ValueError, match=f"^vol1 slice 1: .*{message}"):
        probe(pairs)


def test_images_too_small_for_the_classifier_are_refused() -> None:
    with pytest.raises(ValueError, match=r"vol0 slice 0: .* less than the probe's 16 pixels"):
        probe(banded(0.01, sizes=((40, 15),)))


def test_the_low_signal_view_tells_streaks_in_dark_regions_and_none_in_bright_tissue() -> None:
    generator = torch.Generator().manual_seed(0)
    size = (48, 48)
    x = torch.arange(48)[None].expand(size)
    bright = x >= 24

    def pairs(region: Tensor) -> list[Pair]:
        """Streaks in a region of an image, dark left and bright right."""
        made = []
        for volume in range(4):
            for index in range(4):
                image = torch.where(bright, 1.0, 0.05) + 0.01 * torch.randn(
                    size, generator=generator
                )
                along_x, along_y = (
                    0.02 * torch.randn(shape, generator=generator).expand(size)
                    for shape in ((48, 1), (1, 48))
                )
                made.append(
                    Pair(
                        volume=f"vol{volume}",
                        slice_index=index,
                        r_x=image + along_x * region,
                        r_y=image + along_y * region,
                    )
                )
        return made

    # The weight fades over a few pixels: leave the border between the regions out.
    dark, far_bright = x < 18, x >= 36
    assert probe(pairs(dark), view="low_signal", steps=60).balanced_accuracy.value > 0.9
    of_bright = pairs(far_bright)
    assert probe(of_bright, view="image", steps=60).balanced_accuracy.value > 0.9
    assert probe(of_bright, view="low_signal", steps=60).balanced_accuracy.value < 0.7


def test_equal_images_are_ties_in_the_low_signal_view_too() -> None:
    result = probe(same_in_both(banded(0.01)), view="low_signal", steps=5)
    half = Estimate(value=0.5, low=0.5, high=0.5)
    assert result.balanced_accuracy == result.auc == result.paired == half


def test_the_classifier_is_given_the_view_that_was_asked_for() -> None:
    (pair, *_) = banded(0.01, volumes=1, slices=1)
    image = torch.stack([torch.as_tensor(pair.r_x), torch.as_tensor(pair.r_y)]).double()
    seen = probe_module._viewed(pair, "low_signal")
    assert seen.dtype == torch.float32
    assert torch.equal(seen, low_signal_view(image[:, None])[:, 0].float())
    contrast = probe_module._viewed(pair, "image")
    assert torch.equal(contrast[0], probe_classifier.local_contrast(image[0]))
    half = torch.arange(SIZE[1]).expand(SIZE) < 20
    masked = probe_module._viewed(replace(pair, seen=half), "low_signal")
    assert torch.equal(masked, seen * half)
