"""Steps on a GPU give what they give on the CPU; skipped where there is none."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from banding_removal.config.recipes import PAPER
from banding_removal.config.settings import Settings
from banding_removal.model import layers
from banding_removal.training.players import make_players
from banding_removal.training.schedule import settings_of_step
from banding_removal.training.step import (
    adversary_step,
    clip_all_gradients,
    predictor_step,
    step_optimizers,
    train_step,
)
from benchmarks.step_sizes import SIZES, make_batch
from benchmarks.step_variants import prepare
from benchmarks.tests.formulations import batch_of_two, both_acts, both_formulations

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")


def gradients_on(device: torch.device) -> tuple[dict[str, float], list[Tensor]]:
    """Figures of a step of both players, and their gradients, in double precision."""
    settings, players, _ = both_formulations()
    settings = replace(settings, streak_weight=0.1)
    assert players.adversary is not None
    networks = [players.predictor.to(device), players.adversary.to(device)]
    batch = batch_of_two(37, 41).to(device)
    figures = both_acts(settings, players, batch)
    weights = [weight for network in networks for weight in network.parameters()]
    return figures, [weight.grad.cpu() for weight in weights if weight.grad is not None]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_losses_and_gradients_are_those_of_the_cpu(
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, references = gradients_on(torch.device("cpu"))
    monkeypatch.setattr(
        layers, "memory_format", lambda _: layout
    )  # float32 and bfloat16 have their own
    figures, gradients = gradients_on(GPU)
    assert figures == pytest.approx(expected, rel=1e-6)
    assert len(gradients) == len(references) > 60
    largest = max(float(reference.abs().max()) for reference in references)
    for gradient, reference in zip(gradients, references, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-6, atol=1e-8 * largest)


def test_bfloat16_is_float32_but_for_rounding() -> None:
    size = SIZES["tiny"]
    batch = make_batch(size).to(GPU)
    figures = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        settings = Settings(cascades=2, chans=4, pools=2, sens_chans=4, precision=precision)
        players = make_players(settings, GPU)
        step = settings_of_step(settings, epochs=0, step=1)
        figures.append(train_step(players, [[batch]], step))
    for name in ("loss", "grad_norm"):
        assert figures[1][name] == pytest.approx(figures[0][name], rel=0.05), name


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_both_acts_do_not_wait_for_the_gpu(
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "memory_format", lambda _: layout)
    batch = make_batch(SIZES["tiny"]).to(GPU)
    settings = Settings(cascades=2, chans=4, pools=2, sens_chans=4, acs_lines=(4,))
    settings = replace(settings, **{**PAPER, "stage": "train", "adversary_chans": 8})
    players = make_players(replace(settings, streak_weight=0.1), GPU)
    step = settings_of_step(settings, epochs=0, step=1)
    train_step(players, [[batch]], step)
    torch.cuda.set_sync_debug_mode("error")
    try:
        reconstructions, _ = predictor_step(players, [batch], step)
        adversary_step(players, reconstructions, step)
        clip_all_gradients(players, step)
        step_optimizers(players, step)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("stage", ["pretrain", "adversarial", "inference"])
@pytest.mark.parametrize(
    "variant",
    ["plain-bf16-graphs", "ours-graphs", "ours-bf16-graphs", "ours-bf16-plain-layers-graphs"],
)
def test_a_graph_trains_as_the_step_that_it_records(variant: str, stage: str) -> None:
    if stage == "inference" and "ours-bf16" in variant:
        pytest.skip("reconstructions are float32")
    found = []
    for name in (variant, variant.removesuffix("-graphs")):
        step, predictor = prepare(name, stage, SIZES["tiny"], GPU)
        before = torch.cat([weight.detach().flatten() for weight in predictor.parameters()])
        results = [step() for _ in range(5)]
        after = torch.cat([weight.detach().flatten() for weight in predictor.parameters()])
        found.append((results[-1], after - before))
    (graph, change), (plain, expected) = found
    if isinstance(graph, Tensor) and isinstance(plain, Tensor):
        torch.testing.assert_close(graph, plain, rtol=1e-3, atol=1e-7)
        return
    assert isinstance(graph, dict) and isinstance(plain, dict)
    assert graph["loss"] == pytest.approx(plain["loss"], rel=0.02)
    # Adam turns what is only rounding, gradients of biases before a norm, into changes.
    assert (change - expected).norm() < 0.5 * expected.norm()
