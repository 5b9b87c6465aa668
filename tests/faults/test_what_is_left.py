"""What a run leaves and reports when it is killed, damaged, removed or cannot write."""

import json
import logging
import multiprocessing
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from banding_removal.config.settings import Settings
from banding_removal.data.operators import rss
from banding_removal.errors import RunInUseError
from banding_removal.model.predictor import Predictor
from banding_removal.processes.console import unfailing_console
from banding_removal.processes.signals import StopRequest
from banding_removal.runs.checkpoint import find_checkpoint, list_checkpoints, load_checkpoint
from banding_removal.runs.lock import RunLock
from banding_removal.runs.log import ending_of, logging_to, read_records
from banding_removal.runs.metrics_file import MetricsWriter, read_rows
from banding_removal.runs.resume import decide_start
from banding_removal.runs.status import status
from banding_removal.training.loading import batches_of
from banding_removal.training.loop import train
from banding_removal.training.validation import ValidationResult, Validator


def test_a_log_without_an_end_is_reported_at_the_next_start(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("2026-01-01 00:00:00,000 WARNING the run is failing at step 9: a loss is nan\n")
    assert ending_of(read_records(log)) is None
    with logging_to(tmp_path):
        pass
    with logging_to(tmp_path):
        pass
    text = log.read_text()
    assert text.count("ended without a message, after 2026-01-01 00:00:00") == 1
    assert text.splitlines()[-1].endswith("INFO the run is complete")


def test_the_last_record_says_why_a_run_ended(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no room"), logging_to(tmp_path):
        raise OSError("no room\nfor anything")
    assert ending_of(read_records(tmp_path / "log.txt")) == (
        "the run ended with OSError: no room for anything"
    )


def test_a_log_that_cannot_be_written_ends_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with logging_to(folder):
        (folder / "log.txt").unlink()
        folder.rmdir()
        folder.write_text("a file where the folder was")
        logging.getLogger(__name__).info("said in vain")
        folder.unlink()
        logging.getLogger(__name__).info("said again")
    assert f"cannot write {folder / 'log.txt'}" in capsys.readouterr().err
    assert "said again" in (folder / "log.txt").read_text()


def test_a_console_that_cannot_be_written_ends_no_run_and_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with unfailing_console(), logging_to(tmp_path / "run"):
            for _ in range(3):
                logging.getLogger(__name__).info("said in vain")
        print("nor is this a failure")
    said = capsys.readouterr().err
    assert said.count("cannot write to the console") == said.count("\n") == 1
    assert (tmp_path / "run" / "log.txt").read_text().count("said in vain") == 3


def test_damaged_metrics_are_skipped_and_a_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"kind": "train", "epoch": 1, "step": step} for step in (1, 2, 3)]
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    path.write_bytes(lines[0] + b'\0\0\xff}\n[1]\n{"kind": 1}\n' + lines[1] + lines[2] + b'{"kind"')
    assert read_rows(path) == rows
    MetricsWriter(tmp_path, after=2).close()
    assert path.read_bytes() == lines[0] + lines[1]


def test_a_row_that_cannot_be_written_names_the_file(tmp_path: Path) -> None:
    metrics = MetricsWriter(tmp_path)
    metrics.close()
    metrics._file = Path("/dev/full").open("a")  # noqa: SIM115  # closed by close
    with pytest.raises(OSError, match=r"No space left.*metrics\.jsonl"):
        metrics.write("train", step=1, epoch=1, values={"loss": 0.5})
    metrics.close()  # what could not be written is logged, and raises nothing


def test_half_written_files_of_a_killed_process_are_removed(settings: Settings) -> None:
    folder = train(replace(settings, epochs=1))
    leftover = folder / "checkpoints" / f".epoch002.pt.{'a' * 32}"
    leftover.write_bytes(b"half")
    train(replace(settings, resume=folder))
    assert not leftover.exists()
    assert (
        "removed 1 half-written file(s) of a killed process: epoch002.pt"
        in (folder / "log.txt").read_text()
    )


def test_a_folder_in_which_nothing_was_saved_is_reused(settings: Settings) -> None:
    with RunLock() as lock:
        folder = settings.logs / "toy"
        folder.mkdir(parents=True)
        lock.take(folder)
    assert train(replace(settings, epochs=1)) == folder
    for checkpoint in list_checkpoints(folder):
        checkpoint.unlink()  # by somebody who wants the room: its metrics are worth keeping
    assert train(replace(settings, epochs=1)).name == "toy_2"


def test_no_run_begins_from_one_that_made_no_step(settings: Settings) -> None:
    first = train(replace(settings, epochs=1))
    second = settings.logs / "toy_2" / "checkpoints"
    second.mkdir(parents=True)
    (second / "epoch000.pt").write_bytes((first / "checkpoints" / "epoch000.pt").read_bytes())
    with RunLock() as lock:
        start = decide_start(replace(settings, name="next", init_from="toy"), lock)
    assert start.path == first / "checkpoints" / "epoch001.pt"
    assert start.checkpoint is not None and start.checkpoint.epoch == 1
    assert start.folder is None and not start.everything


def test_a_lock_is_renewed_where_the_folder_was_removed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with RunLock() as lock:
        assert not lock.renew(folder)  # nothing is held
        lock.take(folder)
        assert not lock.renew(folder)
        (folder / ".lock").unlink()
        folder.rmdir()
        assert lock.renew(folder)
        assert (folder / ".lock").exists()
        assert not lock.renew(folder)


def test_a_folder_made_again_by_another_run_is_left_to_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with RunLock() as lock:
        lock.take(folder)
        os.replace(folder, tmp_path / "elsewhere")
        folder.mkdir()
        child = os.fork()
        if child == 0:
            RunLock().take(folder)
            (folder / "taken").touch()
            time.sleep(60)
            os._exit(0)
        try:
            while not (folder / "taken").exists():
                time.sleep(0.01)
            with pytest.raises(RunInUseError, match="in use by another process"):
                lock.renew(folder)
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)


class Broken(Predictor):
    """Its images are NaN."""

    def forward(self, masked_kspace: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.full_like(rss(masked_kspace), torch.nan)


def test_a_nan_reconstruction_in_validation_rolls_the_run_back(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Validator.run, 0

    def spoilt(self: Validator, predictor: Predictor) -> ValidationResult | None:
        nonlocal calls
        calls += 1
        if calls != 1:
            return real(self, predictor)
        return real(self, Broken(cascades=1, chans=2, pools=1, sens_chans=2))

    monkeypatch.setattr(Validator, "run", spoilt)
    folder = train(settings)
    (event,) = load_checkpoint(find_checkpoint(folder)).events
    assert "the reconstruction of" in event["why"]
    assert ".h5 slice 0" in event["why"]
    assert "the run is complete" in (folder / "log.txt").read_text()


# --- status of runs that failed ---


def test_a_run_killed_after_a_warning_is_reported_as_killed(settings: Settings) -> None:
    folder = train(replace(settings, epochs=1))
    with (folder / "log.txt").open("a") as log:
        log.write("2026-01-01 00:00:00,000 WARNING the adversary is at chance\n")
    text = status(folder)
    assert "ended without a message: killed, or its machine went down" in text.splitlines()[0]
    assert "2026-01-01 00:00:00 the adversary is at chance" in text


def test_a_stalled_run_is_reported(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = train(replace(settings, epochs=1))
    monkeypatch.setattr("banding_removal.runs.status.is_locked", lambda _: True)
    assert "or stalled" not in status(folder)
    long_ago = time.time() - 3600
    os.utime(folder / "metrics.jsonl", (long_ago, long_ago))
    assert "no metrics for 1:00:0" in status(folder)
    assert "validating, or stalled" in status(folder)


def test_a_damaged_run_still_has_a_status(settings: Settings) -> None:
    folder = train(replace(settings, epochs=1))
    for name in ("log.txt", "metrics.jsonl"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(b"\xff\0{}\n[]\n" + content[: len(content) // 2])
    for checkpoint in list_checkpoints(folder):
        checkpoint.write_bytes(b"")
    text = status(folder)
    for words in ("ended without a message", "epoch 1, step ", "2 checkpoints", "GB free"):
        assert words in text
    (folder / "metrics.jsonl").write_bytes(b"")
    assert "no step has been logged yet" in status(folder)


def test_a_worker_killed_while_it_sends_a_batch_is_named() -> None:
    worker = subprocess_that_is_killed()

    class Loader:
        _workers = (worker,)

        num_workers = 1
        _iterator = None

        def __iter__(self) -> "Loader":
            return self

        def __next__(self) -> None:
            raise ConnectionResetError

    said = rf"DataLoader worker \(pid {worker.pid}\) is killed by signal 9"
    with pytest.raises(RuntimeError, match=said):
        next(batches_of(Loader(), StopRequest()))  # type: ignore[arg-type]


def subprocess_that_is_killed() -> multiprocessing.Process:
    process = multiprocessing.Process(target=time.sleep, args=(60,))
    process.start()
    process.kill()
    return process
