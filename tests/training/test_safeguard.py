"""Runs that fail on purpose, in each of the known ways."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from banding_removal.config.settings import Settings
from banding_removal.errors import ConfigError, RunFailedError
from banding_removal.runs.checkpoint import find_checkpoint, list_checkpoints, load_checkpoint
from banding_removal.training import loop, run, step
from banding_removal.training.loop import train
from banding_removal.training.safeguard import FailingRun, check_validation, warn_if_at_chance
from banding_removal.training.schedule import StepSettings

Loss = Callable[..., tuple[Tensor, Tensor]]
GOOD = {"banding": 2.0, "banding_across": -5.0, "ssim": 0.8}


@pytest.fixture
def stage_2(settings: Settings) -> Settings:
    return replace(
        settings,
        stage="train",
        name="stage2",
        adversary="simple",
        adversary_chans=8,
        paired=True,
        adversary_replay=4,
        checkpoint_every=2,
        epochs=3,
    )


def spoil(monkeypatch: pytest.MonkeyPatch, calls: set[int], by: Callable[[Tensor], Tensor]) -> None:
    """Spoil the loss of the training in some calls, counted from 1; validation has its own."""
    real: Loss = step.reconstruction_loss
    count = 0

    def spoilt(*args: Any) -> tuple[Tensor, Tensor]:
        nonlocal count
        count += 1
        loss, similarity = real(*args)
        return (by(loss), similarity) if count in calls else (loss, similarity)

    monkeypatch.setattr(step, "reconstruction_loss", spoilt)


def log_of(folder: Path) -> str:
    return (folder / "log.txt").read_text()


def test_a_nan_loss_takes_the_run_back_and_it_goes_on(
    stage_2: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {19}, lambda loss: loss * float("nan"))  # step 10, in the second epoch
    folder = train(stage_2)
    text = log_of(folder)
    assert "the run is failing at step 9: loss is nan on " in text
    assert "Rollback 1 of 5, to step 8" in text
    assert "the run is complete" in text
    end = load_checkpoint(find_checkpoint(folder))
    assert (end.epoch, end.step) == (3, 18)
    (event,) = end.events
    assert (event["step"], event["back_to"]) == (9, 8)
    assert ".h5 slice" in event["why"]
    assert all(value.isfinite().all() for value in end.predictor.values())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [row["step"] for row in rows if row["kind"] == "train"]
    assert trained == list(range(1, 19))
    assert [row["failed_at"] for row in rows if row["kind"] == "rollback"] == [9]


def test_what_is_undone_leaves_no_trace_in_the_weights(
    stage_2: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A factor of 1: the run with the failure does what the one without does, but for dropped steps.
    gentle = replace(stage_2, rollback_factor=1.0, adversary_replay=0)
    through = train(replace(gentle, name="through"))
    spoil(monkeypatch, {20}, lambda loss: loss + float("inf"))
    failing = train(replace(gentle, name="failing"))
    a, b = (load_checkpoint(find_checkpoint(folder)) for folder in (through, failing))
    assert len(b.events) == 1
    for key, value in a.predictor.items():
        assert torch.equal(value, b.predictor[key]), key
    assert a.adversary is not None and b.adversary is not None
    assert all(torch.equal(a.adversary[key], b.adversary[key]) for key in a.adversary)


def test_a_run_that_always_fails_ends_with_the_slice_named(
    stage_2: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, set(range(11, 1000)), lambda loss: loss * float("nan"))
    with pytest.raises(
        RunFailedError, match=r"failing after 2 rollbacks, at step \d: .*\.h5 slice"
    ):
        train(replace(stage_2, rollbacks=2))
    assert "the run ended with RunFailedError" in log_of(stage_2.logs / "stage2")
    # What is saved is sound, and before the failure.
    end = load_checkpoint(list_checkpoints(stage_2.logs / "stage2")[-1])
    assert all(value.isfinite().all() for value in end.predictor.values())
    assert end.step < 5


@pytest.mark.parametrize("rollbacks", [0, None])
def test_without_rollbacks_the_first_failure_is_the_end(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, rollbacks: int | None
) -> None:
    spoil(monkeypatch, {3}, lambda loss: loss * float("nan"))
    with pytest.raises(RunFailedError, match=r"failing \(no rollbacks\), at step 2"):
        train(replace(settings, rollbacks=rollbacks))


def test_a_loss_that_explodes_is_noticed_in_stage_one_and_lowers_the_rate(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("banding_removal.training.safeguard.EARLY", 2)
    spoil(monkeypatch, set(range(9, 13)), lambda loss: 1000 * loss)
    folder = train(replace(settings, checkpoint_every=3))
    end = load_checkpoint(find_checkpoint(folder))
    assert "the loss explodes" in end.events[0]["why"]
    assert end.history[-1]["lr"] == pytest.approx(0.5 ** len(end.events) * settings.lr)
    assert "the run is complete" in log_of(folder)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"banding": -1.5}, "across the phase-encode axis"),
        ({"banding_across": -3.5}, r"\+1\.50 dB"),
        ({"ssim": 0.78}, "from 0.8000 to 0.7800"),
    ],
)
def test_a_validation_shows_each_kind_of_failure(changed: dict[str, float], words: str) -> None:
    fine = {"banding": 0.1, "banding_across": -4.8, "ssim": 0.799}
    check_validation(GOOD, fine, rate=0.0)
    with pytest.raises(FailingRun, match=words):
        check_validation(GOOD, GOOD | changed, rate=0.0)


def test_a_high_learning_rate_may_cost_twice_as_much_detail() -> None:
    check_validation(GOOD, GOOD | {"ssim": 0.771}, rate=1.0)
    with pytest.raises(FailingRun, match=r"0\.8000 to 0\.7690"):
        check_validation(GOOD, GOOD | {"ssim": 0.769}, rate=1.0)
    with pytest.raises(FailingRun, match=r"0\.8000 to 0\.7710"):
        check_validation(GOOD, GOOD | {"ssim": 0.771}, rate=0.5)


def test_banding_that_is_not_measurable_fails_no_run() -> None:
    nan = float("nan")
    check_validation(
        GOOD | {"banding": nan}, GOOD | {"banding": nan, "banding_across": nan}, rate=0.0
    )


def test_a_failing_validation_undoes_the_epoch_and_backs_off(
    stage_2: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([FailingRun("texture is written", in_validation=True), None, None, None])
    used: list[tuple[float, float]] = []
    real = loop.train_step

    def check(*_: Any, **__: Any) -> None:
        failure = next(found)
        if failure is not None:
            raise failure

    def noted(players: Any, groups: Any, settings: StepSettings) -> dict[str, float]:
        used.append((settings.orientation_weight, settings.lr))
        return real(players, groups, settings)

    monkeypatch.setattr(run, "check_validation", check)
    monkeypatch.setattr(loop, "train_step", noted)
    folder = train(replace(stage_2, checkpoint_every=2))
    lr = stage_2.lr
    assert used[::6] == [(1.0, lr), (0.5, lr / 2), (0.5, lr / 2), (0.5, lr / 2)]
    end = load_checkpoint(find_checkpoint(folder))
    assert [row["epoch"] for row in end.history] == [1, 2, 3]
    assert end.events[0]["back_to"] == 0
    assert set(end.start) >= {"banding", "ssim"}


def test_a_failing_validation_undoes_all_since_the_one_before(
    stage_2: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = FailingRun("texture is written", in_validation=True)
    found = iter([None, bad, bad, None, None])

    def check(*_: Any, **__: Any) -> None:
        failure = next(found)
        if failure is not None:
            raise failure

    monkeypatch.setattr(run, "check_validation", check)
    # Validated after epochs 2, 4 and 6 of 6 steps each, with good losses in between.
    often = replace(stage_2, epochs=6, validate_every=2, checkpoint_every=2)
    end = load_checkpoint(find_checkpoint(train(often)))
    assert (end.epoch, end.step) == (6, 36)
    assert [(event["step"], event["back_to"]) for event in end.events] == [(24, 12)] * 2


def test_a_run_that_never_goes_back_warns_of_worse_images_and_goes_on(
    stage_2: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(*_: Any, **__: Any) -> None:
        raise FailingRun("texture is written", in_validation=True)

    monkeypatch.setattr(run, "check_validation", check)
    folder = train(replace(stage_2, rollbacks=None))
    end = load_checkpoint(find_checkpoint(folder))
    assert (end.epoch, end.events) == (3, [])
    assert log_of(folder).count("texture is written (rollbacks=null)") == 3


def test_a_run_that_went_back_resumes_as_gently(
    stage_2: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {19}, lambda loss: loss * float("nan"))
    through = train(replace(stage_2, name="through"))
    spoil(monkeypatch, {19}, lambda loss: loss * float("nan"))
    half = train(replace(stage_2, name="half", epochs=2))
    train(replace(stage_2, name="half", resume=half))
    a, b = (load_checkpoint(find_checkpoint(folder)) for folder in (through, half))
    assert a.events == b.events
    for key, value in a.predictor.items():
        assert torch.equal(value, b.predictor[key]), key


def test_an_adversary_at_chance_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    warn_if_at_chance({"accuracy": 0.9, "val_banding": 2.0})
    warn_if_at_chance({"accuracy": 0.5, "val_banding": 0.1})
    warn_if_at_chance({"train_loss": 0.1})
    assert not caplog.records
    warn_if_at_chance({"accuracy": 0.5, "val_banding": 2.0})
    assert "the adversary is at chance" in caplog.text


def test_a_factor_beyond_one_is_refused(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="rollback_factor"):
        replace(settings, rollback_factor=1.5)
