"""The weights of the cells of an adversary's grid."""

import pytest
import torch
from torch import Tensor

from banding_removal.losses.cells import cell_weights
from banding_removal.losses.orientation import OrientationObjective
from banding_removal.model.classifiers import build_adversary


def quarters() -> Tensor:
    """(1, 1, 64, 64): air on top; below it dark anatomy on the left, bright on the right."""
    torch.manual_seed(0)
    image = 0.002 * torch.rand(1, 1, 64, 64)
    image[..., 32:, :32] += 0.15
    image[..., 32:, 32:] += 1.0
    return image


def test_low_signal_anatomy_counts_whole_background_in_part_and_bright_tissue_nothing() -> None:
    weights = cell_weights(quarters(), 2, 2, background=0.1)
    assert weights.shape == (1, 1, 2, 2)
    assert weights.mean().item() == pytest.approx(1)
    (air, more_air), (dark, bright) = weights[0, 0].tolist()
    assert dark > 3
    assert 0.1 * dark < air < 0.2 * dark  # the dark anatomy is not flat at its borders
    assert more_air == pytest.approx(air, rel=0.3)
    assert bright < 0.02
    torch.testing.assert_close(cell_weights(1e-6 * quarters(), 2, 2, background=0.1), weights)


def test_images_without_low_signal_and_empty_ones_count_nothing() -> None:
    assert cell_weights(1 + 0.01 * torch.rand(1, 1, 32, 32), 2, 2, background=0.1).eq(0).all()
    assert cell_weights(torch.zeros(1, 1, 32, 32), 2, 2, background=0.1).isfinite().all()
    assert cell_weights(torch.rand(1, 1, 6, 6), 1, 1, background=0.1).eq(0).all()


def test_the_predictor_hears_little_of_bright_tissue() -> None:
    torch.manual_seed(1)
    adversary = build_adversary("patch", chans=4)
    objective = OrientationObjective(adversary, background=0.1)
    image, rotated = quarters().mT, torch.ones(1)
    unweighted = OrientationObjective(adversary)
    shares = []
    for each in (objective, unweighted):
        changed = image.clone().requires_grad_()
        each.predictor_term(changed, rotated).backward()
        assert changed.grad is not None
        shares.append((changed.grad[..., 40:, 40:].norm() / changed.grad.norm()).item())
    assert shares[0] < 0.5 * shares[1]  # of the gradient in bright tissue
