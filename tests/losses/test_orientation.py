import pytest
import torch
from torch import Tensor, nn

from banding_removal.losses.adversary_input import Change, adversary_input, upright
from banding_removal.losses.orientation import OrientationObjective
from banding_removal.model.classifiers import ARCHITECTURES, Architecture, build_adversary


def tiny_adversary(members: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return build_adversary("simple", members=members, chans=4).double()


def images(batch: int = 2, size: tuple[int, int] = (12, 12)) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(batch, 1, *size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_free_width_and_members(architecture: Architecture) -> None:
    adversary = build_adversary(architecture, members=2, chans=8).eval()
    logits = adversary(torch.rand(3, 3, 40, 36))
    assert logits.shape[:2] == (3, 2)
    assert logits.ndim in (2, 4)  # one logit for each image, or a grid
    assert not torch.equal(logits[:, 0], logits[:, 1])
    assert not any(isinstance(module, nn.BatchNorm2d) for module in adversary.modules())


def test_patch_has_a_logit_for_each_square_of_16_pixels() -> None:
    assert build_adversary("patch", chans=8)(torch.rand(3, 3, 40, 36)).shape == (3, 1, 3, 3)


def test_unknown_architectures_and_empty_ensembles_are_refused() -> None:
    with pytest.raises(ValueError, match="'deep' is not one of"):
        build_adversary("deep")
    with pytest.raises(ValueError, match="at least one"):
        build_adversary("simple", members=0)


def test_transposed_images_are_turned_back_and_upright_ones_left() -> None:
    x = images(3)
    turned = upright(x, torch.tensor([0.0, 1.0, 0.0]))
    assert torch.equal(turned[0], x[0])
    assert torch.equal(turned[1, 0], x[1, 0].T)
    assert upright(images(2, (8, 12)), torch.ones(2)).shape == (2, 1, 12, 8)
    with pytest.raises(ValueError, match="both orientations"):
        upright(images(2, (8, 12)), torch.tensor([0.0, 1.0]))


def test_the_adversary_sees_normalised_channels_whatever_the_unit() -> None:
    x = adversary_input(1e-6 * images() + 5e-5, torch.zeros(2))
    assert x.shape == (2, 3, 12, 12)
    torch.testing.assert_close(x.mean(dim=(1, 2, 3)), torch.zeros(2).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(x.std(dim=(1, 2, 3)), torch.ones(2).double())


def test_an_empty_image_gives_finite_losses_and_gradients() -> None:
    for architecture in ("simple", "shallow"):
        adversary = build_adversary(architecture, chans=4)
        objective = OrientationObjective(adversary)
        image = torch.zeros(1, 1, 32, 32, requires_grad=True)
        objective.predictor_term(image, torch.ones(1)).backward()
        objective.adversary_loss(image, torch.ones(1)).loss.backward()
        assert image.grad is not None and image.grad.isfinite().all()
        assert all(w.grad is not None and w.grad.isfinite().all() for w in adversary.parameters())


def test_act_one_leaves_the_adversary_without_gradient_and_act_two_the_predictor() -> None:
    objective = OrientationObjective(tiny_adversary())
    image = images().requires_grad_()
    rotated = torch.tensor([0.0, 1.0])
    objective.predictor_term(image, rotated).backward()
    assert image.grad is not None and image.grad.abs().sum() > 0
    assert all(w.grad is None and w.requires_grad for w in objective.adversary.parameters())
    image.grad = None
    objective.adversary_loss(image, rotated).loss.backward()
    assert image.grad is None
    assert all(w.grad is not None for w in objective.adversary.parameters())


def test_the_predictor_wants_indecision_or_the_wrong_label() -> None:
    adversary = tiny_adversary()
    image, rotated = images(1), torch.ones(1)
    logit = adversary(adversary_input(image, rotated))
    bce = nn.functional.binary_cross_entropy_with_logits
    for target, wanted in (("uncertain", 0.5), ("flipped", 0.0)):
        objective = OrientationObjective(adversary, target=target)  # type: ignore[arg-type]
        expected = bce(logit, torch.full_like(logit, wanted))
        torch.testing.assert_close(objective.predictor_term(image, rotated), expected)


@pytest.mark.parametrize("penalty", [0.0, 0.3])
@pytest.mark.parametrize(("architecture", "members"), [("simple", 1), ("simple", 2), ("patch", 1)])
@pytest.mark.parametrize(("changes", "background"), [("everything", None), ("streaks", 0.5)])
def test_one_forward_pass_serves_both_acts(
    architecture: Architecture,
    members: int,
    changes: Change,
    background: float | None,
    penalty: float,
) -> None:
    adversary = build_adversary(architecture, members=members, chans=4).double()
    objective = OrientationObjective(
        adversary, reg_param=penalty, changes=changes, background=background
    )
    rotated = torch.tensor([0.0, 1.0])

    def gradients(*, together: bool) -> list[Tensor]:
        image = images(2, (32, 32)).requires_grad_()
        adversary.zero_grad()
        if together:
            term, losses = objective.both_terms(image, rotated, penalty)
        else:
            term = objective.predictor_term(image, rotated)
            losses = objective.adversary_loss(image, rotated)
        term.backward()
        assert all(weight.grad is None for weight in adversary.parameters())
        losses.loss.backward()
        assert image.grad is not None
        weights = [weight.grad for weight in adversary.parameters() if weight.grad is not None]
        return [term.detach(), losses.loss.detach(), image.grad, *weights]

    for one, other in zip(gradients(together=True), gradients(together=False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-13)


def test_an_ensembles_terms_are_means_over_its_members() -> None:
    ensemble = tiny_adversary(members=3)
    assert isinstance(ensemble.members, nn.ModuleList)
    image, rotated = images(), torch.tensor([1.0, 0.0])
    together = OrientationObjective(ensemble).adversary_loss(image, rotated)
    alone = [OrientationObjective(m).adversary_loss(image, rotated) for m in ensemble.members]
    mean = torch.stack([found.classification for found in alone]).mean()
    torch.testing.assert_close(together.classification, mean)
    assert together.logits.shape == (2, 3)


def test_the_penalty_is_the_squared_gradient_norm_of_the_logit() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((3, 12, 12), 0.5, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.weight).sum(dim=(1, 2, 3))[:, None]

    found = OrientationObjective(Linear(), reg_param=0.2).adversary_loss(images(), torch.ones(2))
    assert found.penalty.item() == pytest.approx(0.2 * 3 * 144 * 0.25)
    none = OrientationObjective(Linear(), reg_param=0).adversary_loss(images(), torch.ones(2))
    assert none.penalty.item() == 0


class Cells(nn.Module):
    """The same logit, that of a linear map, in each of a grid's cells."""

    def __init__(self, *grid: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        weight = torch.randn(3, 12, 12, generator=generator, dtype=torch.float64)
        self.weight = nn.Parameter(weight)
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        logit = (x * self.weight).sum(dim=(1, 2, 3))
        return logit.view(-1, 1, *[1] * len(self.grid)).expand(-1, 1, *self.grid)


@pytest.mark.parametrize("target", ["uncertain", "flipped"])
def test_a_grid_of_one_cell_is_a_single_logit_and_more_cells_are_averaged(target: str) -> None:
    image, rotated = images(3), torch.tensor([0.0, 1.0, 1.0])
    one, grid, single = (
        OrientationObjective(Cells(*shape), target=target)  # type: ignore[arg-type]
        for shape in ((1, 1), (2, 3), ())
    )
    expected = single.adversary_loss(image, rotated)
    for objective, penalty in ((one, 1.0), (grid, 6.0)):  # 6: (6 equal gradients)^2 / 6 cells
        found = objective.adversary_loss(image, rotated)
        term = objective.predictor_term(image, rotated)
        torch.testing.assert_close(term, single.predictor_term(image, rotated))
        torch.testing.assert_close(found.classification, expected.classification)
        torch.testing.assert_close(found.penalty, penalty * expected.penalty)
        torch.testing.assert_close(found.logits, expected.logits)
        assert found.accuracy == expected.accuracy


@pytest.mark.parametrize("architecture", ["simple", "patch"])
def test_an_adversary_learns_to_see_streaks(architecture: Architecture) -> None:
    torch.manual_seed(0)
    objective = OrientationObjective(build_adversary(architecture, chans=8), reg_param=0.01)
    optimizer = torch.optim.Adam(objective.adversary.parameters(), lr=3e-3)
    accuracies = []
    for _ in range(100):
        # The predictor's own frame: streaks lie along its last axis in either orientation.
        image = torch.rand(8, 1, 24, 24) + torch.rand(8, 1, 24, 1)
        rotated = (torch.rand(8) < 0.5).float()
        found = objective.adversary_loss(image, rotated)
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
        accuracies.append(found.accuracy.item())
    assert sum(accuracies[:5]) / 5 < 0.8
    assert sum(accuracies[-20:]) / 20 > 0.95
