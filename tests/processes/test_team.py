"""Several processes compute what one does."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from banding_removal.config.settings import Settings
from banding_removal.data.sampler import shares_by_volume
from banding_removal.processes.launch import launch
from banding_removal.processes.team import Team
from banding_removal.runs.checkpoint import find_checkpoint, load_checkpoint
from banding_removal.runs.datasets import make_datasets
from banding_removal.training.loop import train
from tests.support import distributed_jobs as jobs
from tests.support.fastmri_files import write_volume
from tests.support.runs import assert_same_weights, read_metrics


@pytest.fixture(autouse=True)
def one_thread_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def three_volumes(settings: Settings) -> Settings:
    path = settings.data_path / "multicoil_val" / "val2.h5"
    write_volume(path, slices=5, size=(64, 64), target_size=(60, 60), seed=20)
    return settings


def assert_close(a: list[Tensor], b: list[Tensor]) -> None:
    assert len(a) == len(b) > 0
    scale = max(float(tensor.abs().max()) for tensor in b)
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * scale)


def mean_of(settings: Settings, *indices: int) -> list[Tensor]:
    singles = [jobs.gradients(replace(settings, accumulate=1), Team(), [i]) for i in indices]
    return [torch.stack(parts).mean(dim=0) for parts in zip(*singles, strict=True)]


def test_two_processes_compute_what_one_does(three_volumes: Settings) -> None:
    result: dict[str, Any] = launch(jobs.everything, replace(three_volumes, nproc=2))
    assert result["shared"] == ["made by 0"] * 2
    assert result["mean"] == {"a": 5.0, "b": 0.5}
    assert result["ranks"] == [0, 1]
    torch.manual_seed(3)
    assert result["random"][0] == float(torch.rand(()))  # the first is as one process alone
    assert result["random"][1] != result["random"][0]

    # Gradients: the mean of two single runs, with the adversary and its penalty, too.
    stage_2 = replace(
        three_volumes, stage="train", adversary="simple", adversary_chans=8, reg_param=5.0
    )
    assert_close(result["stage 1"], mean_of(three_volumes, 0, 1))
    assert_close(result["stage 2"], mean_of(stage_2, 0, 1))
    assert_close(result["accumulated"], mean_of(stage_2, 0, 1, 2, 3))
    paired = replace(stage_2, paired=True)
    assert_close(result["paired"], mean_of(paired, 0, 1, 2, 3))
    last = replace(three_volumes, cascades=2, trained_cascades=1)
    assert_close(result["last cascade"], mean_of(last, 0, 1))
    free = mean_of(replace(stage_2, reg_param=0.0), 0, 1)
    with pytest.raises(AssertionError):  # the penalty is large enough to be missed
        assert_close(result["stage 2"], free)

    # Validation: three volumes on two processes, to the last bit.
    alone = jobs.validation(three_volumes, Team())
    shared = result["validation"]
    assert alone is not None
    assert shared.metrics == pytest.approx(alone.metrics, rel=0, abs=0, nan_ok=True)
    assert math.isfinite(shared.metrics["banding"])
    assert shared.volumes == alone.volumes
    assert list(shared.volumes) == list(alone.volumes)
    for one, other in zip(shared.display, alone.display, strict=True):
        assert (one.pair.name, one.pair.slice_index) == (other.pair.name, other.pair.slice_index)
        assert torch.equal(one.pair.along_x, other.pair.along_x)


@pytest.mark.parametrize(
    ("stage", "paired", "split"),
    [(1, False, False), (2, False, False), (2, True, False), (2, True, True)],
)
def test_a_run_of_two_processes_equals_one_that_accumulates(
    settings: Settings, stage: int, paired: bool, split: bool
) -> None:
    # 6 slices in steps of 4 batches (pairs): the last step is filled up. Two processes that share a
    # pair have one pair at a time, as one process has.
    settings = replace(
        settings, accumulate=4 if split else 2, workers=1, paired=paired, split_pairs=split
    )
    if stage == 2:
        settings = replace(settings, stage="train", adversary="simple", adversary_chans=8)
    alone = train(replace(settings, name="alone", accumulate=4))
    together = launch(train, replace(settings, name="together", nproc=2))
    a, b = (load_checkpoint(find_checkpoint(folder)) for folder in (alone, together))
    assert a.step == b.step == 4
    pairs = [(a.predictor, b.predictor)]
    if stage == 2:
        assert a.adversary is not None and b.adversary is not None
        pairs.append((a.adversary, b.adversary))
    for one, other in pairs:
        assert one.keys() == other.keys()  # saved without the wrapper
        for key, value in one.items():
            # Biases before an instance norm have no gradient but rounding, which Adam scales up.
            if not key.endswith("bias"):
                torch.testing.assert_close(value, other[key], rtol=1e-3, atol=1e-4)
    for key in ("train_loss", "val_loss", "val_ssim", *(["accuracy"] if stage == 2 else [])):
        first, second = ([row[key] for row in c.history] for c in (a, b))
        assert first == pytest.approx(second, rel=1e-4)
    # Rank 0 writes; the other one has its own log.
    assert "the run is complete" in (together / "log_rank1.txt").read_text()
    assert len([row for row in read_metrics(together) if row["kind"] == "train"]) == 4
    assert [p.name for p in settings.logs.glob("together*")] == ["together"]


def test_two_processes_resume_bit_for_bit_each_with_its_own_earlier_reconstructions(
    settings: Settings,
) -> None:
    settings = replace(
        settings,
        nproc=2,
        stage="train",
        adversary="simple",
        adversary_chans=8,
        paired=True,
        adversary_replay=4,
        adversary_pretrain_steps=2,
    )
    through = launch(train, replace(settings, name="through", epochs=2))
    half = launch(train, replace(settings, name="half", epochs=1))
    launch(train, replace(settings, epochs=2, resume=half))
    assert_same_weights(through, half)
    a, b = (load_checkpoint(find_checkpoint(folder)).replay for folder in (through, half))
    assert [len(pairs) for pairs in a] == [4, 4]
    assert not torch.equal(a[0][-1], a[1][-1])
    for one, other in zip(a, b, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def test_shares_are_whole_volumes_of_about_equal_size(settings: Settings) -> None:
    for i, slices in enumerate((9, 4, 2)):
        write_volume(settings.data_path / "multicoil_val" / f"x{i}.h5", slices=slices, seed=i)
    _, val_set = make_datasets(settings)  # 3, 3, 9, 4, 2 slices
    shares = shares_by_volume(val_set, 2)
    assert sorted(index for share in shares for index in share) == list(range(21))
    volumes = [{val_set.places[i][0] for i in share} for share in shares]
    assert not volumes[0] & volumes[1]
    assert sorted(len(share) for share in shares) in ([10, 11], [9, 12])
    assert [len(share) for share in shares_by_volume(val_set, 7)].count(0) == 2
