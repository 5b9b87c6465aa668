"""Stopping in one process: at any moment, and with the same weights in the end."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from banding_removal.config.settings import Settings
from banding_removal.errors import RunInUseError
from banding_removal.processes import stuck
from banding_removal.processes.launch import _signals_passed_on, launch
from banding_removal.processes.signals import Stopped
from banding_removal.runs.checkpoint import find_checkpoint, load_checkpoint
from banding_removal.training import loop
from banding_removal.training.loop import train
from tests.support.runs import assert_same_weights, metrics_count, read_metrics


def signal_at(
    monkeypatch: pytest.MonkeyPatch, name: str, call: int, number: int = signal.SIGTERM
) -> None:
    """Send this process a signal during one call of a function of the training loop."""
    owner: Any = loop
    *path, name = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    original = getattr(owner, name)
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.parametrize(
    ("name", "call", "step", "workers"),
    [
        ("train_step", 1, 1, 0),
        ("train_step", 3, 3, 2),
        ("train_step", 6, 6, 0),  # the last one of an epoch: nothing is left but the validation
        ("Validator.run", 1, 6, 0),
        ("Validator.run", 2, 12, 2),
        ("prepare", 1, 1, 0),
    ],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    call: int,
    step: int,
    workers: int,
) -> None:
    monkeypatch.setattr(stuck, "GRACE_S", 600.0)  # the start may be slow, and ends by itself
    settings = replace(settings, workers=workers, dropout=0.1)
    through = train(replace(settings, name="through"))
    with monkeypatch.context() as patch:
        signal_at(patch, name, call)
        with pytest.raises(Stopped, match=f"SIGTERM after step {step}"):
            launch(train, settings)
    folder = launch(train, settings)
    assert folder.name == "toy"
    assert_same_weights(through, folder)
    a, b = (load_checkpoint(find_checkpoint(f)) for f in (through, folder))
    for key in ("epoch", "train_loss", "val_loss", "volumes"):
        assert [row[key] for row in a.history] == [row[key] for row in b.history]
    rows = [row for row in read_metrics(folder) if row["kind"] == "train"]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert not list((folder / "checkpoints").glob("*_step000003*"))


def test_a_closed_terminal_stops_a_run_unless_it_is_to_ignore_that(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    try:
        signal_at(monkeypatch, "train_step", 2, signal.SIGHUP)
        with pytest.raises(Stopped, match="SIGHUP after step 2"):
            launch(train, settings)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        signal_at(monkeypatch, "train_step", 2, signal.SIGHUP)
        launch(train, replace(settings, epochs=1, name="nohup"))
        with _signals_passed_on() as received:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not received
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_warm_up_that_is_stopped_is_repeated(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(
        settings, stage="train", adversary="simple", adversary_chans=8, adversary_pretrain_steps=5
    )
    through = train(replace(settings, name="through"))
    with monkeypatch.context() as patch:
        signal_at(patch, "warm_up", 1)
        with pytest.raises(Stopped, match="SIGTERM after step 0"):
            launch(train, settings)
    assert launch(train, settings).name == "toy"
    assert_same_weights(through, settings.logs / "toy")


def test_a_second_ctrl_c_ends_at_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("banding_removal.processes.signals.SAME_INTERRUPT_S", 0.0)
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        signal_at(patch, "train_step", 2, signal.SIGINT)
        with pytest.raises(Stopped, match="SIGINT after step 2"):
            launch(train, settings)
    signal_at(monkeypatch, "train_step", 1, signal.SIGINT)
    signal_at(monkeypatch, "train_step", 1, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        launch(train, settings)
    assert signal.getsignal(signal.SIGINT) is before
    text = (settings.logs / "toy" / "log.txt").read_text()
    assert "interrupted from the keyboard" in text.splitlines()[-1]


def test_checkpoints_within_an_epoch_lose_no_more_than_their_distance(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(settings, checkpoint_every=2, epochs=1)
    through = train(replace(settings, name="through"))
    original = loop.train_step

    def crash(*args: Any) -> dict[str, float]:
        if metrics_count(settings.logs / "toy") == 5:
            raise MemoryError
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", crash)
        with pytest.raises(MemoryError):
            train(settings)
    assert find_checkpoint(settings.logs / "toy").stem == "epoch000_step000004"
    assert_same_weights(through, train(settings))
    rows = [row for row in read_metrics(settings.logs / "toy") if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]  # the fifth once


def test_another_command_begins_another_run(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        signal_at(patch, "train_step", 2)
        with pytest.raises(Stopped):
            launch(train, settings)
    other = train(replace(settings, lr=5e-4, epochs=1))
    assert other.name == "toy_2"
    # The newest is another one now; the first can be named.
    assert train(replace(settings, resume=settings.logs / "toy")).name == "toy"


def test_a_run_that_is_going_on_is_left_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        signal_at(patch, "train_step", 2)
        with pytest.raises(Stopped):
            launch(train, settings)
    monkeypatch.setattr("banding_removal.runs.resume.PATIENCE_S", 0.0)
    hold = (
        "import sys, pathlib; from banding_removal.runs.lock import RunLock; lock = RunLock();"
        "lock.take(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(settings.logs / "toy")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(RunInUseError, match="toy is in use"):
            train(replace(settings, resume=settings.logs / "toy"))
        with pytest.raises(RunInUseError, match=r"toy is in use .* It has the same settings"):
            train(settings)
        assert train(replace(settings, seed=1, epochs=1)).name == "toy_2"
        other.kill()
    assert train(replace(settings, resume=settings.logs / "toy")).name == "toy"
