import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from banding_removal.command_line import settings_of
from banding_removal.config.overrides import plain
from banding_removal.config.settings import Settings
from banding_removal.errors import CheckpointError
from banding_removal.runs.checkpoint import (
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from banding_removal.runs.lock import RunLock
from banding_removal.runs.resume import completed_run, decide_start
from banding_removal.training.loop import train
from tests.support.checkpoints import checkpoint_of, tiny_predictor
from tests.support.old_settings import as_saved_before_renames
from tests.support.runs import assert_same_weights


@pytest.fixture
def stage_2(settings: Settings) -> Settings:
    """Stage 2 with an adversary that is pretrained and sees earlier reconstructions."""
    pretrained = train(replace(settings, name="pretrain", epochs=1))
    return replace(
        settings,
        stage="train",
        name="stage2",
        init_from=str(pretrained),
        adversary="simple",
        adversary_chans=8,
        adversary_pretrain_steps=2,
        adversary_pretrain_slices=2,
        adversary_replay=2,
        paired=True,
    )


def as_interrupted(folder: Path, settings: Settings) -> None:
    """Make a complete run one of an earlier version that was killed in its second epoch."""
    path = folder / "checkpoints" / "epoch001.pt"
    old = replace(load_checkpoint(path), settings=as_saved_before_renames(settings))
    save_checkpoint(folder, old, keep=0)
    assert list_checkpoints(folder)[-1] == path


@pytest.mark.parametrize("word", [False, True])
def test_a_run_of_an_earlier_version_goes_on_and_ends_with_the_same_weights(
    stage_2: Settings, monkeypatch: pytest.MonkeyPatch, word: bool
) -> None:
    through = train(replace(stage_2, name="through"))
    half = train(stage_2)
    as_interrupted(half, stage_2)
    torch.manual_seed(123)  # the process may have drawn any numbers in between
    if word:
        monkeypatch.setattr(sys, "argv", ["train.py"])
        resumed = settings_of(stage_2, [f"resume={half}"])
        assert replace(resumed, resume=None) == stage_2
        assert train(resumed) == half
    else:
        assert train(stage_2) == half  # the same command
    assert_same_weights(through, half)
    a, b = (load_checkpoint(find_checkpoint(folder)) for folder in (through, half))
    assert a.step == b.step
    assert a.adversary is not None and b.adversary is not None
    assert all(torch.equal(a.adversary[key], b.adversary[key]) for key in a.adversary)
    said = (half / "log.txt").read_text()
    assert "resumed after epoch 1" in said and "setting changed" not in said


def test_a_complete_run_of_an_earlier_version_is_not_repeated(settings: Settings) -> None:
    settings = replace(settings, epochs=1)
    folder = train(settings)
    as_interrupted(folder, settings)
    assert completed_run(settings) == folder
    assert completed_run(replace(settings, recompute=3, workers=1)) == folder
    assert completed_run(replace(settings, epochs=2)) is None
    assert completed_run(replace(settings, lr=1e-5)) is None


@pytest.mark.parametrize("how", ["resume", "the same command", "init_from"])
def test_the_checkpoint_that_a_run_begins_from_is_read_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    folder = train(settings)
    as_interrupted(folder, settings)
    read: list[Path] = []
    read_bytes = Path.read_bytes

    def counted(path: Path) -> bytes:
        read.append(path)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    if how == "resume":
        settings = replace(settings, resume=folder)
    elif how == "init_from":
        settings = replace(settings, init_from=str(folder), name="other")
    with RunLock() as lock:
        start = decide_start(settings, lock)
    assert read == [folder / "checkpoints" / "epoch001.pt"] == [start.path]
    assert start.everything == (how != "init_from")
    assert start.folder == (folder if start.everything else None)


def test_a_run_is_resumed_from_its_folder_or_its_newest_checkpoint(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere.pt"
    older, newest = (
        save_checkpoint(run, checkpoint_of(tiny_predictor(), epoch), keep=0) for epoch in (1, 2)
    )
    elsewhere.write_bytes(newest.read_bytes())
    (tmp_path / "empty").mkdir()
    with RunLock() as lock:
        for named in (run, newest):
            start = decide_start(Settings(resume=named), lock)
            assert (start.folder, start.path, start.everything) == (run, newest, True)
        for named, says in (
            (older, "has gone on to epoch002.pt"),
            (elsewhere, "does not lie in the checkpoints folder"),
            (tmp_path / "empty", "holds no checkpoints"),
            (tmp_path / "nowhere", "does not exist"),
        ):
            with pytest.raises(CheckpointError, match=says):
                decide_start(Settings(resume=named), lock)
    assert not list((tmp_path / "empty").iterdir())


def test_what_was_written_while_waiting_for_the_lock_is_read(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = train(replace(settings, epochs=3))
    checkpoint = load_checkpoint(folder / "checkpoints" / "epoch002.pt")
    as_interrupted(folder, replace(settings, epochs=3))

    def take(self: RunLock, taken: Path, patience: float = 0.0) -> None:
        save_checkpoint(taken, checkpoint, keep=0)  # by the process that had it

    monkeypatch.setattr(RunLock, "take", take)
    with RunLock() as lock:
        start = decide_start(replace(settings, epochs=3), lock)
    assert start.checkpoint is not None and start.checkpoint.epoch == 2


def test_init_from_is_a_path_or_the_name_of_a_run(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = replace(settings, epochs=1)
    first = train(replace(settings, name="a"))
    second = train(replace(settings, name="a", seed=1))
    (tmp_path / "a").mkdir()  # no run; a plain name is not looked for here
    name = "checkpoints/epoch001.pt"
    (tmp_path / "weights.pt").write_bytes((first / name).read_bytes())
    found = {
        "a": second / name,
        "a_2": second / name,
        "logs/a": Path("logs/a") / name,
        str(first / name): first / name,
        "weights.pt": Path("weights.pt"),
    }
    with RunLock() as lock:
        for init_from, path in found.items():
            start = decide_start(replace(settings, name="b", init_from=init_from), lock)
            assert start.path == path
        for init_from in ("./a", "c", "c.pt"):
            with pytest.raises(CheckpointError):
                decide_start(replace(settings, name="b", init_from=init_from), lock)


def test_a_path_to_the_same_weights_is_the_same_setting(settings: Settings) -> None:
    before = train(replace(settings, name="before", epochs=1))
    settings = replace(settings, init_from=str(before), epochs=1)
    folder = train(settings)
    assert completed_run(replace(settings, init_from=f"{before}/")) == folder
    assert completed_run(replace(settings, init_from=None)) is None


def test_a_run_whose_pairs_two_processes_shared_goes_on_in_one(settings: Settings) -> None:
    settings = replace(settings, paired=True, epochs=2)
    shared = replace(settings, nproc=2, split_pairs=True)
    checkpoint = replace(checkpoint_of(tiny_predictor(), 1), settings=plain(shared))
    path = save_checkpoint(settings.logs / settings.name, checkpoint, keep=0)
    for nproc, goes_on in ((1, True), (2, False)):
        with RunLock() as lock:
            start = decide_start(replace(settings, nproc=nproc), lock)
            assert start.path == (path if goes_on else None)
