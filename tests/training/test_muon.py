from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from banding_removal.config.settings import Settings
from banding_removal.errors import CheckpointError
from banding_removal.runs.weights import load_optimizer
from banding_removal.training.loop import train
from banding_removal.training.muon import ADAM_PART, MOMENTUM, Muon, orthogonal
from tests.support.runs import assert_same_weights, read_metrics


@pytest.mark.parametrize("shape", [(3, 8, 72), (1, 72, 8), (5, 1, 9), (2, 16, 16)])
def test_singular_values_become_about_one_and_directions_stay(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape) * 1e-6
    found = orthogonal(matrices)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    in_their_basis = u.mT @ found @ v.mT
    diagonal = in_their_basis.diagonal(dim1=-2, dim2=-1)
    assert ((diagonal > 0.5) & (diagonal < 1.3)).all()
    assert (in_their_basis - torch.diag_embed(diagonal)).abs().max() < 1e-4
    assert torch.equal(orthogonal(torch.zeros(shape)), torch.zeros(shape))


def some_layers() -> nn.ModuleList:
    torch.manual_seed(1)
    return nn.ModuleList([nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3), nn.Conv2d(2, 30, 3)])


def set_gradients(layers: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    for weight in layers.parameters():
        weight.grad = torch.randn_like(weight)


def test_a_convolution_moves_by_the_orthogonal_nesterov_momentum_alone() -> None:
    layers = some_layers()
    optimizer = Muon(layers.parameters(), lr=0.1)
    momenta = [torch.zeros_like(layer.weight) for layer in layers]  # type: ignore[arg-type]
    for seed in range(3):
        set_gradients(layers, seed)
        before = [layer.weight.detach().clone() for layer in layers]  # type: ignore[operator]
        optimizer.step()
        for layer, momentum, old in zip(layers, momenta, before, strict=True):
            gradient = layer.weight.grad
            assert isinstance(gradient, Tensor)
            momentum.lerp_(gradient, 1 - MOMENTUM)
            ahead = torch.lerp(gradient, momentum, MOMENTUM).flatten(1)
            # 30 rows and 18 columns: as large a change of an output as a wide matrix makes.
            size = 0.1 * (30 / 18) ** 0.5 if len(old) == 30 else 0.1
            expected = -size * orthogonal(ahead[None])[0]
            moved = (layer.weight.detach() - old).flatten(1)  # type: ignore[operator]
            torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)


def test_all_else_moves_as_with_adam_at_a_tenth_of_the_rate() -> None:
    torch.manual_seed(0)
    start = [torch.randn(3, 5, 1, 1), torch.randn(7), torch.ones(1)]
    ours, theirs = ([nn.Parameter(value.clone()) for value in start] for _ in range(2))
    muon, adam = Muon(ours, lr=0.02), torch.optim.Adam(theirs, lr=0.02 * ADAM_PART)
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        muon.step()
        adam.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_weights_without_a_gradient_stay_and_keep_nothing() -> None:
    layers = some_layers()
    optimizer = Muon(layers.parameters(), lr=0.1)
    before = [weight.detach().clone() for weight in layers.parameters()]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(layers.parameters(), before, strict=True))
    assert not optimizer.state_dict()["state"]
    with pytest.raises(ValueError, match="closure"):
        optimizer.step(lambda: 0.0)


def test_the_state_of_another_optimiser_is_refused() -> None:
    layers = some_layers()
    set_gradients(layers, 0)
    adam, muon = torch.optim.Adam(layers.parameters()), Muon(layers.parameters(), lr=0.1)
    states: list[dict[str, Any]] = []
    for optimizer in (adam, muon):
        optimizer.step()
        states.append(optimizer.state_dict())
    with pytest.raises(CheckpointError, match=r"Muon has no .*betas"):
        load_optimizer(muon, states[0], Path("a.pt"))
    with pytest.raises(CheckpointError, match="does not fit"):
        load_optimizer(adam, states[1], Path("a.pt"))


def test_a_run_with_muon_learns_and_resumes_bit_for_bit(settings: Settings) -> None:
    settings = replace(settings, optimizer="muon", lr=0.01, epochs=4)
    through = train(replace(settings, name="through"))
    half = train(replace(settings, name="half", epochs=2))
    train(replace(settings, name="half", resume=half))
    assert_same_weights(through, half)
    losses = [row["loss"] for row in read_metrics(through) if row["kind"] == "train"]
    assert losses[-1] < losses[0]
