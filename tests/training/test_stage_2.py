"""Stage 2 with an adversary, from its settings to its log."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from banding_removal.config.settings import Settings
from banding_removal.data.dataset import SliceDataset
from banding_removal.data.sampler import EpochSampler
from banding_removal.errors import CheckpointError, ConfigError
from banding_removal.pictures.kept_slices import read_slices
from banding_removal.processes.team import Team
from banding_removal.reconstruction.pairs import reconstruct_pairs
from banding_removal.runs.checkpoint import find_checkpoint, load_checkpoint
from banding_removal.runs.datasets import make_datasets
from banding_removal.training.loading import make_loader
from banding_removal.training.loop import train
from banding_removal.training.players import make_players
from banding_removal.training.warmup import warm_up
from tests.support.fastmri_files import write_volume
from tests.support.runs import assert_same_weights, read_metrics, weights_of


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
    assert "1 of 4 training volumes were undersampled by the scanner" in caplog.text
    assert "(measured.h5)" in caplog.text
    for path in folder.glob("file*.h5"):
        path.unlink()
    with pytest.raises(ConfigError, match="paired needs training volumes"):
        make_datasets(replace(stage_2, paired=True))


@pytest.fixture
def stage_2(settings: Settings) -> Settings:
    """Settings of the second stage on the toy data of stage 1."""
    return replace(settings, name="stage2", stage="train", adversary="simple", adversary_chans=8)


def test_the_page_begins_with_the_images_before_stage_2(stage_2: Settings) -> None:
    folder = train(replace(stage_2, epochs=1, validate_every=1))
    assert [*read_slices(folder).epochs] == [0, 1]
    found = re.search(r'id="page">(.*?)</script>', (folder / "index.html").read_text(), re.DOTALL)
    assert found
    (run,) = json.loads(found[1])["runs"]
    checkpoint = load_checkpoint(find_checkpoint(folder))
    expected = [checkpoint.start["ssim"], checkpoint.history[0]["val_ssim"]]
    assert run["curves"]["epochs"] == [0, 1]
    assert run["curves"]["series"]["val_ssim"] == pytest.approx(expected, rel=1e-5)
    for name in ("lr", "adversary_lr"):
        rate = checkpoint.history[0][name]
        assert rate > 0 and run["curves"]["series"][name] == [None, pytest.approx(rate)]


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
    assert "adversary alone" in (half / "log.txt").read_text().partition("resumed after")[0]
    assert "adversary alone" not in (half / "log.txt").read_text().partition("resumed after")[2]


def test_the_warm_up_teaches_the_adversary_alone(
    stage_2: Settings, train_set: SliceDataset
) -> None:
    stage_2 = replace(
        stage_2,
        adversary="patch",
        adversary_lr=3e-3,
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
    fresh = players.objective.adversary_loss_upright(images, rotated, 0.01)
    alone = (players, train_set, torch.device("cpu"), Team())
    assert warm_up(*alone, steps=60, slices=96, reg_param=0.01)
    warm = players.objective.adversary_loss_upright(images, rotated, 0.01)
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
