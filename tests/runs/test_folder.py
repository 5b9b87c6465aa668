import errno
import fcntl
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from banding_removal.config.settings import Settings
from banding_removal.runs.checkpoint import find_checkpoint
from banding_removal.runs.folder import in_latest, new_run_folder, show_as_latest
from banding_removal.runs.lock import RunLock
from banding_removal.runs.status import status
from banding_removal.training.loop import train


def test_something_that_is_not_a_link_is_not_replaced_by_one(tmp_path: Path) -> None:
    folder = new_run_folder(tmp_path / "logs", "toy")
    (tmp_path / "logs" / "run").mkdir()
    with pytest.raises(FileExistsError, match="move it away"):
        show_as_latest(folder)


def without(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int) -> None:
    """Let a function of the operating system fail as on a file system that lacks it."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(owner, name, refuse)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EACCES, errno.EOPNOTSUPP])
def test_a_run_goes_on_without_locks_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    without(monkeypatch, fcntl, "lockf", number)
    with RunLock() as lock:
        lock.take(tmp_path)
        assert not lock.renew(tmp_path)
        assert not lock.is_enforced
    (warning,) = caplog.messages
    assert "file system without locks" in warning and os.strerror(number) in warning
    (tmp_path / "log.txt").write_text("2026-01-01 00:00:00,000 INFO epoch 1\n")
    assert ": running" in status(tmp_path)
    (tmp_path / "log.txt").write_text("2026-01-01 00:00:00,000 INFO the run is complete\n")
    assert "the run is complete" in status(tmp_path)


def test_another_error_of_a_lock_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, fcntl, "lockf", errno.EIO)
    with RunLock() as lock, pytest.raises(OSError, match="Input/output error"):
        lock.take(tmp_path)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_links_a_text_file_names_the_newest_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    logs = tmp_path / "logs"
    with monkeypatch.context() as patch:
        without(patch, os, "symlink", number)
        for name in ("toy", "toy_2"):
            assert new_run_folder(logs, "toy") == logs / name
            show_as_latest(logs / name)
        show_as_latest(logs / "toy_2")
    assert (logs / "run").read_text() == "toy_2\n"
    assert len(caplog.messages) == 1 and "cannot be a link" in caplog.text
    assert in_latest(logs / "run") == logs / "toy_2"
    assert (
        in_latest(logs / "run" / "checkpoints" / "a.pt") == logs / "toy_2" / "checkpoints" / "a.pt"
    )
    assert in_latest(logs / "toy") == logs / "toy"
    show_as_latest(logs / "toy")  # where links are to be had again
    assert (logs / "run").is_symlink()
    assert in_latest(logs / "run") == logs / "run"


@pytest.mark.parametrize("content", ["", "a/b", "..", "two\nlines\n", "x" * 2000])
def test_a_text_file_that_names_no_run_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "run").write_text(content)
    with pytest.raises(FileExistsError, match="move it away"):
        show_as_latest(tmp_path / "toy")
    assert (tmp_path / "run").read_text() == content


def test_a_run_on_a_file_system_with_neither_is_found_by_what_reads_the_newest(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, fcntl, "lockf", errno.ENOSYS)
    without(monkeypatch, os, "symlink", errno.EPERM)
    folder = train(replace(settings, epochs=1, grid_slices=0))
    run = settings.logs / "run"
    assert run.read_text() == "toy\n"
    assert find_checkpoint(run) == folder / "checkpoints" / "epoch001.pt"
    assert "toy: the run is complete" in status(run)
    assert (folder / "log.txt").read_text().count("without locks") == 1
