import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from banding_removal.config.settings import Settings
from banding_removal.data.batch import collate
from banding_removal.data.dataset import Draw
from banding_removal.data.operators import crop_to_smaller
from banding_removal.data.phantom.files import write_dataset
from banding_removal.data.phantom.spec import DEMO
from banding_removal.losses.adversary_input import only_streaks
from banding_removal.losses.orientation import OrientationObjective
from banding_removal.losses.reconstruction import reconstruction_loss
from banding_removal.losses.streaks import ROUNDED, streak_term
from banding_removal.model.classifiers import build_adversary
from banding_removal.runs.datasets import make_datasets
from banding_removal.training.players import make_players
from banding_removal.training.schedule import settings_of_step
from banding_removal.training.step import predictor_step

DATA_RANGE = torch.ones(2, dtype=torch.float64)
BELOW = 0.15


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


def term_of(
    image: Tensor,
    target: Tensor,
    data_range: Tensor,
    *,
    below: float = BELOW,
    background: float = 0.1,
) -> Tensor:
    return streak_term(image, target, data_range, below=below, background=background)


def test_streaks_count_and_somewhat_less_than_none_is_wanted() -> None:
    target = anatomy()
    streaks = noise_along(-1, target)
    none, weak, strong = (
        float(term_of(target + size * streaks, target, DATA_RANGE)) for size in (0.0, 0.005, 0.02)
    )
    # |D + m| rounded, D = 0
    assert none == pytest.approx(math.hypot(BELOW, ROUNDED) - ROUNDED)
    assert none < weak < strong
    overshot = term_of(target + 0.02 * noise_along(-2, target), target, DATA_RANGE)
    assert overshot > weak
    assert term_of(target, target, DATA_RANGE, below=0) == 0


def test_background_and_anatomy_have_their_weights() -> None:
    # Low-signal anatomy beside background, with stronger streaks.
    target = anatomy((96, 96))[1:]
    target[..., 48:] += 0.05
    image = target + 0.005 * noise_along(-1, target)
    image[..., 48:] += 0.02 * noise_along(-1, target)[..., 48:]
    of_anatomy, of_both, of_background = (
        float(term_of(image, target, DATA_RANGE[1:], background=weight))
        for weight in (0.0, 0.25, 1.0)
    )
    assert of_anatomy > 1.5 * of_background
    assert of_both == pytest.approx(0.75 * of_anatomy + 0.25 * of_background)


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
        terms.append(float(term_of(image, target, DATA_RANGE[:1])))
    assert terms[1] > 3 * terms[0]


def test_its_gradient_removes_streaks_and_never_writes_across_them() -> None:
    target = anatomy()
    along, across = noise_along(-1, target), noise_along(-2, target)
    image = (target + 0.01 * along + 0.002 * across).requires_grad_()
    (gradient,) = torch.autograd.grad(term_of(image, target, DATA_RANGE), image)
    down = float((gradient * along).sum())
    assert down > 0
    # More texture across would bring the two together just as well, but is no way down.
    assert abs(float((gradient * across).sum())) < 0.05 * down


def test_following_the_gradient_ends_where_both_directions_are_alike() -> None:
    target = anatomy()
    image = (target + 0.01 * noise_along(-1, target)).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=3e-4)
    first = float(term_of(image.detach(), target, DATA_RANGE))
    for _ in range(100):
        optimizer.zero_grad()
        term = term_of(image, target, DATA_RANGE)
        term.backward()
        optimizer.step()
    assert float(term.detach()) < 0.02 * first


def test_the_unit_does_not_matter() -> None:
    target = anatomy((96, 96))
    image = target + 0.01 * noise_along(-1, target)
    term = term_of(image, target, DATA_RANGE)
    torch.testing.assert_close(term, term_of(1e-4 * image, 1e-4 * target, 1e-4 * DATA_RANGE))


@pytest.mark.parametrize("image", [torch.zeros(1, 1, 64, 64), torch.rand(1, 1, 9, 9)])
def test_empty_and_tiny_images_have_a_gradient_of_zero(image: Tensor) -> None:
    image = image.clone().requires_grad_()
    term_of(image, image.detach(), torch.ones(1)).backward()
    assert image.grad is not None and (image.grad == 0).all()


def test_only_streaks_pass_backward() -> None:
    image = torch.rand(2, 1, 24, 17, dtype=torch.float64, requires_grad=True)
    assert torch.equal(only_streaks(image), image)
    for axis, passes in ((-1, True), (-2, False)):
        pattern = noise_along(axis, image) - noise_along(axis, image).mean((-2, -1), keepdim=True)
        (gradient,) = torch.autograd.grad((only_streaks(image) * pattern).sum(), image)
        expected = pattern if passes else torch.zeros_like(pattern)
        torch.testing.assert_close(gradient, expected)


def test_an_adversary_may_be_heard_on_streaks_alone_and_learns_as_before() -> None:
    torch.manual_seed(0)
    adversary = build_adversary("patch", chans=4).double()
    image = torch.rand(2, 1, 32, 32, dtype=torch.float64)
    rotated = torch.tensor([0.0, 1.0])
    gradients, losses = {}, []
    for changes in ("everything", "streaks"):
        x = image.clone().requires_grad_()
        objective = OrientationObjective(adversary, changes=changes)
        term = objective.predictor_term(x, rotated)
        losses.append(objective.adversary_loss(x, rotated).loss.detach())
        (gradients[changes],) = torch.autograd.grad(term, x)
    x = image.clone().requires_grad_()
    (filtered,) = torch.autograd.grad(only_streaks(x), x, gradients["everything"])
    torch.testing.assert_close(gradients["streaks"], filtered)
    assert filtered.abs().sum() < gradients["everything"].abs().sum()
    assert losses[0] == losses[1]


def test_training_adds_the_term_with_its_settings(tmp_path: Path, settings: Settings) -> None:
    spec = replace(
        DEMO, kspace_size=(96, 72), target_size=(72, 72), acquired=(0, 72), coils=2, slices=4
    )
    write_dataset(tmp_path / "phantom", spec, train_volumes=1, val_volumes=1, seed=0)
    settings = replace(
        settings,
        data_path=tmp_path / "phantom",
        stage="train",
        streak_weight=3.0,
        streak_below=0.2,
        streak_background=0.3,
        l1_weight=1e-3,
    )
    data = make_datasets(settings)[0]
    batch = collate([data[Draw(epoch=1, index=i, rotated=True)] for i in (1, 2)])
    assert batch.target is not None
    torch.manual_seed(0)
    players = make_players(settings, torch.device("cpu"))
    output = players.predictor(batch.masked_kspace, batch.mask, batch.acs_lines)
    image, target = crop_to_smaller(output, batch.target)
    term = streak_term(image, target, batch.data_range, below=0.2, background=0.3)
    (reconstruction_loss(output, batch.target, batch.data_range, 1e-3)[0] + 1.5 * term).backward()
    weights = [weight for weight in players.predictor.parameters() if weight.grad is not None]
    expected = [weight.grad for weight in weights]
    players.predictor.zero_grad()

    step = settings_of_step(settings, epochs=0, step=1, backoff_factor=0.5)  # after a rollback
    _, values = predictor_step(players, [batch], step)
    assert values["streaks"] == pytest.approx(float(term.detach()))
    for weight, gradient in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-3, atol=1e-6)
