import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from banding_removal.config.settings import Settings
from banding_removal.errors import ConfigError
from banding_removal.processes.signals import Stopped
from banding_removal.runs.lock import LOCK
from banding_removal.runs.status import status
from banding_removal.training.loop import train
from scripts import status as script

REPOSITORY = Path(script.__file__).parent.parent


def test_a_complete_run_is_reported_with_its_end(settings: Settings) -> None:
    text = status(train(replace(settings, epochs=3)))
    assert "toy: the run is complete" in text
    assert "epoch 3, step 18 of 18, " in text
    assert "validation after epoch 3: ssim 0." in text
    assert "the newest epoch003.pt" in text
    assert "GB free" in text
    assert "left" not in text


def test_a_running_run_is_reported_with_the_time_left(settings: Settings) -> None:
    folder = train(settings)
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    train_rows = [row for row in rows if json.loads(row)["kind"] == "train"]
    assert {json.loads(row)["total_steps"] for row in train_rows} == {12}
    half = [json.loads(row) | {"step_ms": 60_000} for row in train_rows[:5]]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in half))
    hold = "import sys, time; from pathlib import Path; "
    hold += "from banding_removal.runs.lock import RunLock; "
    hold += "lock = RunLock(); lock.take(Path(sys.argv[1])); print('held', flush=True); "
    hold += "time.sleep(60)"
    command = [sys.executable, "-c", hold, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        text = status(folder)
        holder.kill()
    assert "toy: running" in text
    assert "about 0:07:00 left" in text
    time.sleep(0.1)
    assert "toy: running" not in status(folder)


def test_status_does_not_keep_the_folder_locked(tmp_path: Path) -> None:
    (tmp_path / "log.txt").touch()
    (tmp_path / LOCK).touch()
    assert "no step has been logged yet" in status(tmp_path)
    # In another process: locks of one process do not exclude each other.
    take = "import sys; from pathlib import Path; from banding_removal.runs.lock import RunLock; "
    take += "RunLock().take(Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", take, str(tmp_path)], cwd=REPOSITORY, check=False)
    assert done.returncode == 0


def test_a_killed_run_is_reported_with_its_events(settings: Settings) -> None:
    folder = train(settings)
    log = folder / "log.txt"
    lines = log.read_text().splitlines()
    assert "the run is complete" in lines.pop()
    lines.append("2026-01-01 00:00:00,000 WARNING the run is failing at step 9: a loss is nan")
    lines.append("2026-01-01 00:00:01,000 INFO epoch 2/2: loss 0.1")
    log.write_text("\n".join(lines) + "\n")
    text = status(folder)
    assert "ended without a message" in text
    assert "last events:\n  2026-01-01 00:00:00 the run is failing at step 9" in text


def test_the_script_takes_the_newest_run_and_refuses_other_folders(
    settings: Settings, tmp_path: Path
) -> None:
    folder = train(settings)
    assert status(settings.logs / "run") == status(folder)
    with pytest.raises(ConfigError, match="not the folder of a run"):
        status(tmp_path)
    done = subprocess.run(
        [sys.executable, "scripts/status.py", f"run={folder}"],
        capture_output=True, text=True, check=True, cwd=REPOSITORY, env={**os.environ},
    )  # fmt: skip
    assert "the run is complete" in done.stdout


def test_a_stopped_run_is_reported_with_the_signal(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from banding_removal.training import loop

    def stop(*_: object) -> None:
        raise Stopped("SIGTERM", 3)

    monkeypatch.setattr(loop, "train_step", stop)
    with pytest.raises(Stopped):
        train(settings)
    assert "SIGTERM" in status(settings.logs / "toy").splitlines()[0]
