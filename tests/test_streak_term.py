import math

import pytest
import torch
from torch import Tensor

from banding_removal.adversarial import OrientationObjective, only_streaks
from banding_removal.streak_term import BELOW, ROUNDED, streak_term
from model.classifiers import build_adversary

DATA_RANGE = torch.ones(2, dtype=torch.float64)


def anatomy(size: tuple[int, int] = (96, 80)) -> Tensor:
    """Two slices with noise, one of them with a bright square."""
    generator = torch.Generator().manual_seed(0)
    image = 0.05 + 0.02 * torch.rand(2, 1, *size, dtype=torch.float64, generator=generator)
    image[0, :, 40:56, 30:50] = 1
    return image


def noise_along(axis: int, like: Tensor) -> Tensor:
    """Streaks along an axis, white across it."""
    shape = list(like.shape)
    shape[axis] = 1
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, dtype=like.dtype, generator=generator).expand_as(like)


def test_streaks_count_and_somewhat_less_than_none_is_wanted() -> None:
    target = anatomy()
    streaks = noise_along(-1, target)
    none, weak, strong = (
        float(streak_term(target + size * streaks, target, DATA_RANGE))
        for size in (0.0, 0.005, 0.02)
    )
    # |D + m| rounded, D = 0
    assert none == pytest.approx(math.hypot(BELOW, ROUNDED) - ROUNDED)
    assert none < weak < strong
    overshot = streak_term(target + 0.02 * noise_along(-2, target), target, DATA_RANGE)
    assert overshot > weak


def test_in_a_pair_what_anatomy_does_cancels_and_streaks_do_not() -> None:
    target = anatomy((96, 96))
    pair, ranges = torch.cat([target, target.mT]), torch.cat([DATA_RANGE, DATA_RANGE])
    lines = 0.01 * noise_along(-1, target)
    none = streak_term(pair, pair, ranges, paired=True)
    anatomy_s = pair + torch.cat([lines, lines.mT])
    torch.testing.assert_close(streak_term(anatomy_s, pair, ranges, paired=True), none)
    assert streak_term(anatomy_s, pair, ranges) > 3 * none
    banding = pair + torch.cat([lines, lines])
    assert streak_term(banding, pair, ranges, paired=True) > 3 * none


def test_background_weighs_less_than_anatomy() -> None:
    generator = torch.Generator().manual_seed(0)
    target = 0.01 * torch.rand(1, 1, 96, 96, dtype=torch.float64, generator=generator)
    target[..., 48:] += 0.1
    target[..., :4, :4] = 1
    streaks = 0.01 * noise_along(-1, target)
    terms = []
    for left, right in ((0, 44), (52, 96)):
        image = target.clone()
        image[..., left:right] += streaks[..., left:right]
        terms.append(float(streak_term(image, target, DATA_RANGE[:1])))
    assert terms[1] > 3 * terms[0]


def test_its_gradient_removes_streaks_and_never_writes_across_them() -> None:
    target = anatomy()
    along, across = noise_along(-1, target), noise_along(-2, target)
    image = (target + 0.01 * along + 0.002 * across).requires_grad_()
    (gradient,) = torch.autograd.grad(streak_term(image, target, DATA_RANGE), image)
    down = float((gradient * along).sum())
    assert down > 0
    # More texture across would bring the two together just as well, but is no way down.
    assert abs(float((gradient * across).sum())) < 0.05 * down


def test_following_the_gradient_ends_where_both_directions_are_alike() -> None:
    target = anatomy()
    image = (target + 0.01 * noise_along(-1, target)).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=3e-4)
    first = float(streak_term(image.detach(), target, DATA_RANGE))
    for _ in range(100):
        optimizer.zero_grad()
        term = streak_term(image, target, DATA_RANGE)
        term.backward()
        optimizer.step()
    assert float(term.detach()) < 0.02 * first


def test_the_unit_does_not_matter() -> None:
    target = anatomy((96, 96))
    image = target + 0.01 * noise_along(-1, target)
    term = streak_term(image, target, DATA_RANGE)
    torch.testing.assert_close(term, streak_term(1e-4 * image, 1e-4 * target, 1e-4 * DATA_RANGE))


@pytest.mark.parametrize("image", [torch.zeros(1, 1, 64, 64), torch.rand(1, 1, 9, 9)])
def test_empty_and_tiny_images_have_a_gradient_of_zero(image: Tensor) -> None:
    image = image.clone().requires_grad_()
    streak_term(image, image.detach(), torch.ones(1)).backward()
    assert image.grad is not None and (image.grad == 0).all()


def test_only_streaks_pass_backward() -> None:
    image = torch.rand(2, 1, 24, 17, dtype=torch.float64, requires_grad=True)
    assert torch.equal(only_streaks(image), image)
    for axis, passes in ((-1, True), (-2, False)):
        pattern = noise_along(axis, image) - noise_along(axis, image).mean((-2, -1), keepdim=True)
        (gradient,) = torch.autograd.grad((only_streaks(image) * pattern).sum(), image)
        expected = pattern if passes else torch.zeros_like(pattern)
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("way", ["both_acts", "predictor_term"])
def test_an_adversary_may_be_heard_on_streaks_alone_and_learns_as_before(way: str) -> None:
    torch.manual_seed(0)
    adversary = build_adversary("patch", chans=4).double()
    image = torch.rand(2, 1, 32, 32, dtype=torch.float64)
    rotated = torch.tensor([0.0, 1.0])
    gradients, losses = {}, []
    for changes in ("everything", "streaks"):
        x = image.clone().requires_grad_()
        objective = OrientationObjective(adversary, changes=changes)
        if way == "both_acts":
            term, verdict = objective.both_acts(x, rotated)
            losses.append(verdict.loss.detach())
        else:
            term = objective.predictor_term(x, rotated)
        (gradients[changes],) = torch.autograd.grad(term, x)
    x = image.clone().requires_grad_()
    (filtered,) = torch.autograd.grad(only_streaks(x), x, gradients["everything"])
    torch.testing.assert_close(gradients["streaks"], filtered)
    assert filtered.abs().sum() < gradients["everything"].abs().sum()
    assert len(losses) < 2 or losses[0] == losses[1]
