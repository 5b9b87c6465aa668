from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from banding_removal.config.settings import Settings
from banding_removal.data.batch import collate
from banding_removal.data.dataset import SliceDataset
from banding_removal.data.operators import crop_to_smaller
from banding_removal.data.sampler import EpochSampler
from banding_removal.errors import CheckpointError, ConfigError
from banding_removal.losses.orientation import OrientationObjective, adversary_input, upright
from banding_removal.model.classifiers import ARCHITECTURES, Architecture, build_adversary
from banding_removal.processes.team import Team
from banding_removal.reconstruction.pairs import reconstruct_pairs
from banding_removal.runs.build import make_datasets
from banding_removal.runs.checkpoint import find_checkpoint, load_checkpoint
from banding_removal.training.loading import make_loader
from banding_removal.training.loop import train
from banding_removal.training.replay import PairStore
from banding_removal.training.step import (
    accumulate_gradients,
    adversary_strength,
    make_players,
    penalty_weight,
    step_optimizers,
)
from banding_removal.training.warmup import warm_up
from tests.support.fastmri_files import write_volume
from tests.support.runs import assert_same_weights, read_metrics, weights_of


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
    assert logits.shape == ((3, 2, 3, 3) if architecture == "patch" else (3, 2))
    assert not torch.equal(logits[:, 0], logits[:, 1])
    assert not any(isinstance(module, nn.BatchNorm2d) for module in adversary.modules())


def test_unknown_architectures_and_empty_ensembles_are_refused() -> None:
    with pytest.raises(ValueError, match="none of shallow"):
        build_adversary("deep")  # type: ignore[arg-type]
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


def test_an_ensembles_terms_are_means_over_its_members() -> None:
    ensemble = tiny_adversary(members=3)
    assert isinstance(ensemble.members, nn.ModuleList)
    image, rotated = images(), torch.tensor([1.0, 0.0])
    together = OrientationObjective(ensemble).adversary_loss(image, rotated)
    alone = [OrientationObjective(m).adversary_loss(image, rotated) for m in ensemble.members]
    mean = torch.stack([verdict.classification for verdict in alone]).mean()
    torch.testing.assert_close(together.classification, mean)
    assert together.logits.shape == (2, 3)


def test_the_penalty_is_the_squared_gradient_norm_of_the_logit() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((3, 12, 12), 0.5, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.weight).sum(dim=(1, 2, 3))[:, None]

    verdict = OrientationObjective(Linear(), reg_param=0.2).adversary_loss(images(), torch.ones(2))
    assert verdict.penalty.item() == pytest.approx(0.2 * 3 * 144 * 0.25)
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
        verdict = objective.adversary_loss(image, rotated)
        term = objective.predictor_term(image, rotated)
        torch.testing.assert_close(term, single.predictor_term(image, rotated))
        torch.testing.assert_close(verdict.classification, expected.classification)
        torch.testing.assert_close(verdict.penalty, penalty * expected.penalty)
        torch.testing.assert_close(verdict.logits, expected.logits)
        assert verdict.accuracy == expected.accuracy


@pytest.mark.parametrize("reg_param", [0.1, 0.0])
@pytest.mark.parametrize("target", ["uncertain", "flipped"])
@pytest.mark.parametrize(("architecture", "members"), [("shallow", 1), ("simple", 2), ("patch", 1)])
def test_one_run_of_the_adversary_serves_both_acts(
    architecture: Architecture, members: int, target: str, reg_param: float
) -> None:
    torch.manual_seed(0)
    adversary = build_adversary(architecture, members=members, chans=4).double()
    objective = OrientationObjective(adversary, target=target, reg_param=reg_param)  # type: ignore[arg-type]
    rotated = torch.tensor([1.0, 0.0, 1.0])
    results = []
    for together in (False, True):
        image = images(3, size=(36, 36)).requires_grad_()
        if together:
            term, verdict = objective.both_acts(image, rotated)
        else:
            term = objective.predictor_term(image, rotated)
            verdict = objective.adversary_loss(image, rotated)
        adversary.zero_grad()
        verdict.loss.backward()
        of_adversary = [weight.grad for weight in adversary.parameters()]
        (3 * term).backward()
        assert all(w.grad is g for w, g in zip(adversary.parameters(), of_adversary, strict=True))
        assert image.grad is not None and image.grad.abs().sum() > 0
        results.append([term.detach(), verdict.loss.detach(), image.grad, *of_adversary])
    for apart, shared in zip(*results, strict=True):
        torch.testing.assert_close(shared, apart, rtol=1e-9, atol=1e-14)


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
        verdict = objective.adversary_loss(image, rotated)
        optimizer.zero_grad()
        verdict.loss.backward()
        optimizer.step()
        accuracies.append(verdict.accuracy.item())
    assert sum(accuracies[:5]) / 5 < 0.8
    assert sum(accuracies[-20:]) / 20 > 0.95


def test_a_pair_is_one_slice_in_both_orientations_each_with_its_own_mask(
    settings: Settings, train_set: SliceDataset
) -> None:
    sampler = EpochSampler(train_set, batch_size=1, seed=0, shuffle=True, paired=True)
    batches = list(make_loader(train_set, sampler, 0, torch.device("cpu")))
    assert len(batches) == 2 * len(train_set)
    for plain, turned in zip(batches[::2], batches[1::2], strict=True):
        assert (plain.names, plain.slices) == (turned.names, turned.slices)
        assert (plain.rotated.item(), turned.rotated.item()) == (0, 1)
        assert plain.target is not None and turned.target is not None
        assert torch.equal(plain.target, turned.target.swapaxes(-2, -1))
        height, width = plain.masked_kspace.shape[-2:]
        assert turned.masked_kspace.shape[-2:] == (width, height)
        for batch in (plain, turned):  # undersampled along its last axis alone
            measured = batch.masked_kspace.abs().sum(dim=(0, 1, 2)) > 0
            assert batch.mask.shape[-1] == len(measured)
            assert not measured[~batch.mask.flatten()].any()
            assert 0 < measured.sum() < 0.6 * len(measured)


def test_pairs_need_volumes_that_the_scanner_sampled_fully(
    stage_2: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    folder = stage_2.data_path / "multicoil_train"
    write_volume(folder / "measured.h5", mask=np.arange(28) % 2 == 0)
    train_set, _ = make_datasets(replace(stage_2, paired=True))
    assert "measured.h5" not in [volume.name for volume in train_set.volumes]
    assert "measured.h5 was undersampled by the scanner" in caplog.text
    for path in folder.glob("file*.h5"):
        path.unlink()
    with pytest.raises(ConfigError, match="paired needs training volumes"):
        make_datasets(replace(stage_2, paired=True))


@pytest.fixture
def stage_2(settings: Settings) -> Settings:
    """Settings of the second stage on the toy data of stage 1."""
    return replace(settings, stage="train", name="stage2", adversary="simple", adversary_chans=8)


def test_two_epochs_and_two_after_a_resume_equal_four_with_an_adversary(stage_2: Settings) -> None:
    stage_2 = replace(stage_2, epoch_fraction=0.7, accumulate=2)
    through = train(replace(stage_2, epochs=4, name="through"))
    half = train(replace(stage_2, name="half"))
    train(replace(stage_2, epochs=4, resume=half))
    assert_same_weights(through, half)
    a, b = (load_checkpoint(find_checkpoint(folder)) for folder in (through, half))
    assert a.adversary is not None and b.adversary is not None
    assert all(torch.equal(a.adversary[key], b.adversary[key]) for key in a.adversary)
    for key in ("accuracy", "adversary_orientation", "predictor_orientation", "penalty"):
        assert [row[key] for row in a.history] == [row[key] for row in b.history]


def test_a_resume_goes_on_bit_for_bit_with_warm_up_ramp_and_earlier_reconstructions(
    stage_2: Settings,
) -> None:
    stage_2 = replace(
        stage_2,
        paired=True,
        adversary_replay=4,
        adversary_replay_batch=2,
        adversary_pretrain_steps=3,
        adversary_pretrain_slices=3,
        adversary_ramp_steps=9,
        adversary_betas=(0.5, 0.99),
        penalty_every=4,
    )
    through = train(replace(stage_2, epochs=2, name="through"))
    half = train(replace(stage_2, epochs=1))
    torch.manual_seed(123)  # whatever the process drew in between
    train(replace(stage_2, epochs=2, resume=half))
    assert_same_weights(through, half)
    a, b = (load_checkpoint(find_checkpoint(folder)) for folder in (through, half))
    assert a.adversary is not None and b.adversary is not None
    assert all(torch.equal(a.adversary[key], b.adversary[key]) for key in a.adversary)
    assert [len(pairs) for pairs in a.replay] == [4]
    assert all(torch.equal(x, y) for x, y in zip(a.replay[0], b.replay[0], strict=True))
    assert "warm-up" in (half / "log.txt").read_text().partition("resumed after")[0]
    assert "warm-up" not in (half / "log.txt").read_text().partition("resumed after")[2]


def test_the_store_keeps_the_newest_pairs_and_draws_those_of_one_size() -> None:
    store = PairStore(3)
    for value, size in ((0.0, 8), (1.0, 8), (2.0, 6), (3.0, 8)):
        store.add(torch.stack([torch.full((1, 1, size, size), value + k) for k in (0, 0.5)], dim=1))
    drawn, rotated = store.draw(5, like=torch.zeros(1, 1, 8, 8))
    assert sorted(drawn[:, 0, 0, 0].tolist()) == [1.0, 1.5, 3.0, 3.5]
    assert torch.equal(drawn[:, 0, 0, 0] % 1, rotated / 2)  # the label of each
    assert store.draw(1, like=torch.zeros(1, 1, 6, 6))[0].shape == (2, 1, 6, 6)
    assert store.draw(1, like=torch.zeros(1, 1, 7, 7))[0].shape == (0, 1, 7, 7)


def test_the_strength_grows_over_the_ramp() -> None:
    ramp = Settings(adversary_strength=6.0, adversary_ramp_steps=3)
    assert [adversary_strength(ramp, step) for step in (1, 2, 3, 4)] == [2.0, 4.0, 6.0, 6.0]
    assert adversary_strength(replace(ramp, adversary_ramp_steps=0), 1) == 6.0


def test_a_rarer_penalty_weighs_more() -> None:
    rare = Settings(reg_param=0.5, penalty_every=3)
    assert [penalty_weight(rare, step) for step in (1, 2, 3, 4)] == [1.5, 0.0, 0.0, 1.5]
    assert [penalty_weight(replace(rare, penalty_every=1), step) for step in (1, 2)] == [0.5, 0.5]


def test_the_warm_up_teaches_the_adversary_alone(
    stage_2: Settings, train_set: SliceDataset
) -> None:
    stage_2 = replace(
        stage_2,
        adversary="patch",
        adversary_pretrain_steps=60,
        adversary_lr=3e-3,
        reg_param=0.01,
        adversary_replay=4,
        paired=True,
    )
    torch.manual_seed(0)
    players = make_players(stage_2, torch.device("cpu"))
    assert players.objective is not None and players.replay is not None
    before = {key: value.clone() for key, value in players.predictor.state_dict().items()}
    pairs = reconstruct_pairs(players.predictor, train_set, [0, 2, 4], torch.device("cpu"))
    both = [image for pair in pairs for image in (pair.along_x, pair.along_y)]
    images = torch.stack([image for image in both if image is not None])[:, None]
    rotated = torch.tensor([0.0, 1.0] * 3)
    fresh = players.objective.judge(images, rotated)
    assert warm_up(stage_2, players, train_set, torch.device("cpu"), Team())
    warm = players.objective.judge(images, rotated)
    assert warm.classification < 0.5 * fresh.classification
    assert warm.accuracy == 1
    assert all(torch.equal(v, before[k]) for k, v in players.predictor.state_dict().items())
    assert all(weight.grad is None for weight in players.predictor.parameters())
    assert len(players.replay.pairs) == 4  # the newest of the six slices


def test_stage_two_logs_what_both_players_do(stage_2: Settings) -> None:
    folder = train(replace(stage_2, epochs=1))
    row = next(row for row in read_metrics(folder) if row["kind"] == "train")
    expected = {"loss", "ssim", "predictor_orientation", "adversary_orientation", "accuracy"}
    expected |= {"accuracy_running", "bias", "penalty", "grad_norm", "adversary_grad_norm"}
    assert expected <= set(row)
    assert "adversary: accuracy" in (folder / "log.txt").read_text()


def test_stage_two_begins_where_the_newest_pretraining_ended(
    settings: Settings, stage_2: Settings
) -> None:
    train(replace(settings, name="pretrain", epochs=1))
    newest = train(replace(settings, name="pretrain", epochs=1, seed=5))
    (settings.logs / "pretrain_3").mkdir()  # begun and ended before its first checkpoint
    (settings.logs / "pretrain_dev").mkdir()
    second = train(replace(stage_2, init_from="pretrain", epochs=1, lr=1e-30))
    assert newest.name == "pretrain_2"
    assert_same_weights(newest, second)


def test_a_missing_pretraining_says_how_to_make_it(stage_2: Settings) -> None:
    with pytest.raises(CheckpointError, match=r"ipython scripts/pretrain\.py"):
        train(replace(stage_2, init_from="pretrain"))
    assert not (stage_2.logs / "stage2").exists()


def test_a_resume_across_stages_is_refused(settings: Settings, stage_2: Settings) -> None:
    first = train(replace(settings, epochs=1))
    with pytest.raises(CheckpointError, match="without an adversary"):
        train(replace(stage_2, resume=first))
    second = train(replace(stage_2, epochs=1))
    with pytest.raises(CheckpointError, match="with an adversary"):
        train(replace(settings, resume=second))


def test_before_its_first_epoch_the_adversary_changes_nothing(
    settings: Settings, stage_2: Settings
) -> None:
    plain = train(settings)
    warm = replace(stage_2, adversary_term_from_epoch=3, adversary_from_epoch=2)
    warming = train(warm)
    assert_same_weights(plain, warming)
    rows = [row for row in read_metrics(warming) if row["kind"] == "train"]
    assert [("accuracy" in row) for row in rows] == [row["epoch"] >= 2 for row in rows]
    assert not any("predictor_orientation" in row for row in rows)
    pulled = train(replace(warm, adversary_term_from_epoch=2))
    assert any(not torch.equal(v, weights_of(plain)[k]) for k, v in weights_of(pulled).items())


def test_accumulated_gradients_are_the_mean_of_single_ones(
    stage_2: Settings, train_set: SliceDataset
) -> None:
    device = torch.device("cpu")
    batches = [collate([train_set[i]]) for i in (0, 3)]

    def gradients(chosen: list[int]) -> list[Tensor]:
        torch.manual_seed(0)
        players = make_players(stage_2, device)
        for i in chosen:
            accumulate_gradients(stage_2, players, [batches[i]], 1, len(chosen))
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
    accumulate_gradients(settings, players, first, 1, 1)
    assert players.replay is not None and players.adversary is not None and players.objective
    assert len(players.replay.pairs) == 1
    kept = players.replay.pairs[0]

    with torch.no_grad():
        shown = [
            crop_to_smaller(players.predictor(b.masked_kspace, b.mask, b.acs_lines), b.target)[0]
            for b in second
        ]
    standing = [upright(x, b.rotated) for x, b in zip(shown, second, strict=True)]
    players.adversary.zero_grad()
    verdict = players.objective.judge(
        torch.cat([*standing, kept]), torch.tensor([0.0, 1.0, 0.0, 1.0])
    )
    verdict.loss.backward()
    expected = [weight.grad for weight in players.adversary.parameters()]
    players.adversary.zero_grad()
    values = accumulate_gradients(settings, players, second, 1, 1)
    for weight, gradient in zip(players.adversary.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-6)
    for key, value in verdict.figures().items():
        assert values[key] == pytest.approx(value, rel=1e-4, abs=1e-6)


def test_one_step_moves_both_players_and_leaves_no_gradient(
    stage_2: Settings, train_set: SliceDataset
) -> None:
    torch.manual_seed(0)
    players = make_players(stage_2, torch.device("cpu"))
    assert players.adversary is not None
    before = [w.clone() for n in (players.predictor, players.adversary) for w in n.parameters()]
    batch = collate([train_set[1]])
    accumulate_gradients(stage_2, players, [batch], 1, 1)
    step_optimizers(stage_2, players, batch)
    after = [w for n in (players.predictor, players.adversary) for w in n.parameters()]
    moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    # Biases before an instance norm have no gradient but rounding; everything else moves.
    assert sum(moved) > 0.7 * len(moved)
    assert all(w.grad is None for w in after)


@pytest.mark.parametrize("fraction", [0.2, 0.35])
def test_consecutive_part_epochs_see_every_slice_equally_often(
    train_set: SliceDataset, fraction: float
) -> None:
    sampler = EpochSampler(train_set, batch_size=1, seed=0, shuffle=True, fraction=fraction)
    seen: list[int] = []
    for epoch in range(30):
        sampler.epoch = epoch
        indices = [draw.index for batch in sampler for draw in batch]
        assert len(indices) == len(sampler) == round(fraction * len(train_set))
        seen += indices
    counts = [seen.count(i) for i in range(len(train_set))]
    assert max(counts) - min(counts) <= 1


def test_every_stage_two_script_fits_its_stage_one(tmp_path: Path) -> None:
    for name in ("train", "train_dev"):
        text = (Path(__file__).parents[2] / "scripts" / f"{name}.py").read_text()
        first = (Path(__file__).parents[2] / "scripts" / f"pre{name}.py").read_text()
        assert f'init_from="pre{name}"' in text
        cascades = next(line for line in text.splitlines() if "cascades=" in line)
        assert cascades in first
