"""Orientation-adversarial training in another training loop, for fastMRI's own VarNet."""

import inspect
import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from banding_removal.losses.orientation import OrientationObjective
from banding_removal.model.classifiers import build_adversary


def train_step(
    network: Any,
    optimizer: torch.optim.Optimizer,
    objective: OrientationObjective,
    adversary_optimizer: torch.optim.Optimizer,
    kspace: Tensor,
    target: Tensor,
    draw_mask: Any,
    loss_function: Any,
) -> tuple[Tensor, Tensor]:
    # 1. Transpose the fully sampled slice with probability 1/2, before it is undersampled.
    rotated = (torch.rand(1) < 0.5).float()
    if rotated.item():
        kspace, target = kspace.transpose(-3, -2), target.transpose(-2, -1)
    mask = draw_mask(kspace)
    image = network(kspace * mask, mask)[:, None]  # (batch, 1, height, width)

    # 2. The network's own loss, plus the term that makes the adversary undecided.
    loss = loss_function(image, target) + objective.predictor_term(image, rotated)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

    # 3. The adversary's step. The image is a constant here.
    adversary_losses = objective.adversary_loss(image, rotated)
    adversary_optimizer.zero_grad()
    adversary_losses.loss.backward()
    adversary_optimizer.step()
    return loss.detach(), adversary_losses.accuracy


def test_the_documented_lines_are_those_that_are_tested() -> None:
    source = inspect.getsource(train_step)
    body = source[source.index("    # 1.") : source.index("    return loss")]
    page = Path(__file__).parent.parent / "docs" / "other_codebases.md"
    assert textwrap.dedent(body).strip() in page.read_text()


def test_fastmris_varnet_trains_against_the_adversary() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("fastmri")
        from fastmri.data.subsample import EquispacedMaskFractionFunc
        from fastmri.models import VarNet

    torch.manual_seed(1)
    mask_function = EquispacedMaskFractionFunc(center_fractions=[0.2], accelerations=[4])

    def draw_mask(kspace: Tensor) -> Tensor:
        mask, _ = mask_function(np.array((1, 1, *kspace.shape[-3:])))
        return mask.bool()

    network = VarNet(num_cascades=1, sens_chans=2, sens_pools=2, chans=4, pools=2)
    objective = OrientationObjective(build_adversary("shallow", chans=8))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    adversary_optimizer = torch.optim.Adam(objective.adversary.parameters(), lr=1e-3)
    networks = (network, objective.adversary)
    before = [w.detach().clone() for n in networks for w in n.parameters()]
    kspace, target = torch.randn(1, 3, 32, 32, 2), torch.rand(1, 1, 32, 32)
    losses = []
    for _ in range(4):
        loss, accuracy = train_step(
            network,
            optimizer,
            objective,
            adversary_optimizer,
            kspace,
            target,
            draw_mask,
            torch.nn.functional.l1_loss,
        )
        losses.append(loss)
        assert accuracy.item() in (0.0, 1.0)
    assert torch.stack(losses).isfinite().all()
    after = [w for n in networks for w in n.parameters()]
    moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert sum(moved) > 0.8 * len(moved)
