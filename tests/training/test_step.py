"""One training step: accumulated groups, pairs, earlier reconstructions."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from banding_removal.config.settings import Settings
from banding_removal.data.batch import Batch, collate
from banding_removal.data.dataset import SliceDataset
from banding_removal.data.operators import crop_to_smaller
from banding_removal.data.sampler import EpochSampler
from banding_removal.errors import CheckpointError
from banding_removal.losses.adversary_input import upright
from banding_removal.training.loading import make_loader
from banding_removal.training.players import Players, make_players
from banding_removal.training.replay import PairStore
from banding_removal.training.schedule import StepSettings, settings_of_step
from banding_removal.training.step import adversary_step, predictor_step, train_step

PARTS = ("predictor", "optimizer", "adversary", "adversary_optimizer")


@pytest.fixture
def stage_2(settings: Settings) -> Settings:
    return replace(settings, stage="train", adversary="simple", adversary_chans=8)


def both_acts(players: Players, group: list[Batch], step: StepSettings) -> dict[str, float]:
    """The metrics of a group; its gradients are added to the players'."""
    reconstructions, metrics = predictor_step(players, group, step)
    metrics |= adversary_step(players, reconstructions, step)
    return {name: value.item() for name, value in metrics.items()}


def test_accumulated_gradients_are_the_mean_of_single_ones(
    stage_2: Settings, train_set: SliceDataset
) -> None:
    device = torch.device("cpu")
    batches = [collate([train_set[i]]) for i in (0, 3)]
    step = settings_of_step(stage_2, epochs=0, step=1)

    def gradients(chosen: list[int]) -> list[Tensor]:
        torch.manual_seed(0)
        players = make_players(stage_2, device)
        for i in chosen:
            both_acts(players, [batches[i]], replace(step, num_groups=len(chosen)))
        assert players.adversary is not None
        networks = (players.predictor, players.adversary)
        return [w.grad for n in networks for w in n.parameters() if w.grad is not None]

    for both, a, b in zip(gradients([0, 1]), gradients([0]), gradients([1]), strict=True):
        torch.testing.assert_close(both, (a + b) / 2, rtol=1e-4, atol=1e-6)


def test_pairs_and_earlier_ones_weigh_alike_in_the_adversarys_gradient(
    stage_2: Settings, train_set: SliceDataset
) -> None:
    settings = replace(
        stage_2, paired=True, adversary="patch", adversary_replay=3, adversary_replay_batch=2
    )
    sampler = EpochSampler(train_set, batch_size=1, seed=0, shuffle=True, paired=True)
    loader = iter(make_loader(train_set, sampler, 0, torch.device("cpu")))
    players = make_players(settings, torch.device("cpu"))
    first, second = ([next(loader), next(loader)] for _ in range(2))
    step = settings_of_step(settings, epochs=0, step=1)
    both_acts(players, first, step)
    assert players.replay is not None and players.adversary is not None and players.objective
    assert len(players.replay.pairs) == 1
    kept = players.replay.pairs[0]

    with torch.no_grad():
        shown = [
            crop_to_smaller(players.predictor(b.masked_kspace, b.mask, b.acs_lines), b.target)[0]
            for b in second
        ]
    upright_images = [upright(x, b.rotated) for x, b in zip(shown, second, strict=True)]
    players.adversary.zero_grad()
    losses = players.objective.adversary_loss_upright(
        torch.cat([*upright_images, kept]), torch.tensor([0.0, 1.0, 0.0, 1.0]), settings.reg_param
    )
    losses.loss.backward()
    expected = [weight.grad for weight in players.adversary.parameters()]
    players.adversary.zero_grad()
    values = both_acts(players, second, step)
    for weight, gradient in zip(players.adversary.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-6)
    for key, value in losses.metrics().items():
        assert values[key] == pytest.approx(value.item(), rel=1e-4, abs=1e-6)


def test_one_step_moves_both_players_and_leaves_no_gradient(
    stage_2: Settings, train_set: SliceDataset
) -> None:
    torch.manual_seed(0)
    players = make_players(stage_2, torch.device("cpu"))
    assert players.adversary is not None
    before = [w.clone() for n in (players.predictor, players.adversary) for w in n.parameters()]
    step = settings_of_step(stage_2, epochs=0, step=1)
    train_step(players, [[collate([train_set[1]])]], step)
    after = [w for n in (players.predictor, players.adversary) for w in n.parameters()]
    moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    # Biases before an instance norm have no gradient but rounding; everything else moves.
    assert sum(moved) > 0.7 * len(moved)
    assert all(w.grad is None for w in after)


def test_the_store_keeps_the_newest_pairs_and_draws_those_of_one_size() -> None:
    store = PairStore(3)
    for value, size in ((0.0, 8), (1.0, 8), (2.0, 6), (3.0, 8)):
        store.add(torch.stack([torch.full((1, 1, size, size), value + k) for k in (0, 0.5)], dim=1))
    drawn, rotated = store.draw(5, like=torch.zeros(1, 1, 8, 8))
    assert sorted(drawn[:, 0, 0, 0].tolist()) == [1.0, 1.5, 3.0, 3.5]
    assert torch.equal(drawn[:, 0, 0, 0] % 1, rotated / 2)  # the label of each
    assert store.draw(1, like=torch.zeros(1, 1, 6, 6))[0].shape == (2, 1, 6, 6)
    assert store.draw(1, like=torch.zeros(1, 1, 7, 7))[0].shape == (0, 1, 7, 7)
    half = PairStore(3, orientations=(1,))
    half.add([torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)]), torch.ones(1, 1, 8, 8)])
    drawn, rotated = half.draw(2, like=torch.zeros(1, 1, 8, 8))
    assert torch.equal(drawn, torch.ones(2, 1, 8, 8))
    assert rotated.tolist() == [1.0, 1.0]


def test_the_first_act_teaches_the_predictor_alone_and_the_second_the_adversary(
    stage_2: Settings, train_set: SliceDataset
) -> None:
    players = make_players(stage_2, torch.device("cpu"))
    assert players.adversary is not None
    step = settings_of_step(stage_2, epochs=0, step=1)
    reconstructions, _ = predictor_step(players, [collate([train_set[1]])], step)
    assert not any(each.image.requires_grad for each in reconstructions)
    assert all(w.grad is None and w.requires_grad for w in players.adversary.parameters())
    learnt = [w.grad.clone() for w in players.predictor.parameters() if w.grad is not None]
    assert learnt
    adversary_step(players, reconstructions, step)
    assert all(weight.grad is not None for weight in players.adversary.parameters())
    after = [w.grad for w in players.predictor.parameters() if w.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(learnt, after, strict=True))


def test_the_orientation_term_counts_with_its_weight(
    stage_2: Settings, train_set: SliceDataset
) -> None:
    step = settings_of_step(stage_2, epochs=0, step=1)
    torch.manual_seed(1)  # with some weights, the term's gradient is lost in the others' rounding
    players = make_players(stage_2, torch.device("cpu"))
    gradients = []
    for weight in (0.0, 1.0, 3.0):
        players.predictor.zero_grad()
        batch = collate([train_set[1]])
        predictor_step(players, [batch], replace(step, orientation_weight=weight))
        weights = [w for w in players.predictor.parameters() if w.grad is not None]
        gradients.append(torch.cat([w.grad.flatten() for w in weights if w.grad is not None]))
    none, one, three = gradients
    scale = float((one - none).abs().max())
    assert scale > 1e-5
    torch.testing.assert_close(three - none, 3 * (one - none), rtol=1e-3, atol=1e-3 * scale)


def test_players_take_over_the_state_of_others_and_go_on_alike(
    stage_2: Settings, train_set: SliceDataset
) -> None:
    stage_2 = replace(stage_2, paired=True, adversary_replay=2, adversary_replay_batch=1)
    sampler = EpochSampler(train_set, batch_size=1, seed=0, shuffle=True, paired=True)
    loader = iter(make_loader(train_set, sampler, 0, torch.device("cpu")))
    groups = [[next(loader), next(loader)] for _ in range(3)]
    step = settings_of_step(stage_2, epochs=0, step=1)
    one, other = (make_players(stage_2, torch.device("cpu")) for _ in range(2))
    train_step(one, [groups[0]], step)
    train_step(other, [groups[1]], step)
    other.load_state_dict(copy.deepcopy(one.state_dict()), Path("one"))
    for players in (one, other):
        torch.manual_seed(0)
        train_step(players, [groups[2]], step)
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys() == {*PARTS, "replay"}
    for key in ("predictor", "adversary"):
        assert all(torch.equal(value, b[key][name]) for name, value in a[key].items())
    for key in ("optimizer", "adversary_optimizer"):
        for number, moments in a[key]["state"].items():
            for name, value in moments.items():
                assert torch.equal(value, b[key]["state"][number][name])
    assert len(a["replay"]) == 2
    assert all(torch.equal(x, y) for x, y in zip(a["replay"], b["replay"], strict=True))


def test_players_of_one_stage_refuse_the_state_of_the_other(stage_2: Settings) -> None:
    one, other = (
        make_players(settings, torch.device("cpu"))
        for settings in (stage_2, replace(stage_2, adversary=None))
    )
    with pytest.raises(CheckpointError, match="without an adversary and this run is with"):
        one.load_state_dict(other.state_dict(), Path("other"))
