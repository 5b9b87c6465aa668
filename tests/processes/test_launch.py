"""Processes that are started, fail, are killed or stopped: all of them end, with the cause."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from banding_removal.config.settings import Settings
from banding_removal.errors import ConfigError
from banding_removal.processes.exit_status import RankError
from banding_removal.processes.launch import launch, process_count
from banding_removal.runs.checkpoint import find_checkpoint, list_checkpoints, load_checkpoint
from tests.support import distributed_jobs as jobs
from tests.support.distributed_jobs import Plain
from tests.support.fastmri_files import write_volume
from tests.support.runs import SCRIPTS, assert_same_weights, metrics_count, read_metrics

PYTHON = (sys.executable,)
IPYTHON = (sys.executable, "-m", "IPython")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
TOY = ("cascades=1", "chans=2", "pools=1", "sens_chans=2", "acs_lines=[6]", "device=cpu")


@pytest.fixture(autouse=True)
def one_thread_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_an_error_in_one_process_ends_all_with_its_message(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(RankError) as caught:
        launch(jobs.fail_in_rank_1, Plain())
    assert caught.value.code == 2  # as a user's error in one process
    said = [line for line in capfd.readouterr().err.splitlines() if "VolumeError" in line]
    assert said == ["rank 1: VolumeError: /data/broken.h5: cannot be read"]


def test_a_bug_in_one_process_ends_another_that_does_not_wait_for_it(
    capfd: pytest.CaptureFixture[str],
) -> None:
    begun = time.monotonic()
    with pytest.raises(RankError) as caught:
        launch(jobs.fail_while_the_other_computes, Plain())
    assert caught.value.code == 1
    assert time.monotonic() - begun < 60
    text = capfd.readouterr().err
    assert "rank 0: Traceback" in text
    assert "RuntimeError: a bug" in text


class Job:
    """A script in processes of its own."""

    def __init__(
        self,
        folder: Path,
        script: str,
        *words: str,
        command: tuple[str, ...],
        environment: dict[str, str] | None = None,
    ) -> None:
        self.logs = folder / "logs"
        words = (f"data_path={folder / 'data'}", f"logs={self.logs}", *TOY, *words)
        self.process = subprocess.Popen(
            [*command, str(SCRIPTS / script), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, **(environment or {})},
        )

    def wait_for(self, condition: Callable[[], bool]) -> None:
        give_up = time.monotonic() + 120
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < give_up
            time.sleep(0.05)

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=240)
        return self.process.returncode, out, err


def test_sigterm_saves_and_the_same_command_ends_with_the_weights_of_an_uninterrupted_run(
    tmp_path: Path, data_path: Path
) -> None:
    for number in range(2):
        path = data_path / "multicoil_train" / f"long{number}.h5"
        write_volume(path, slices=12, attrs={"max": 350.0}, seed=7 + number)
    words = ["nproc=2", "epochs=3", "log_every=1", "dropout=0.1", "workers=1"]
    job = Job(tmp_path, "pretrain_dev.py", *words, command=IPYTHON)
    run = tmp_path / "logs" / "pretrain_dev"
    job.wait_for(lambda: metrics_count(run) > 7)
    job.process.send_signal(signal.SIGTERM)
    code, out, err = job.end()
    assert code == 75, err
    assert "stopped by SIGTERM after step" in err
    assert "Traceback" not in err
    assert out.count("settings:") == 1  # only rank 0 prints
    warning = "multicoil_train: in 2 of 5 volumes the attribute max is not the largest value"
    assert (out + err).count(warning) == 1
    assert (out + err).count("the attribute max") == 1
    step = load_checkpoint(find_checkpoint(run)).step
    assert 7 < step < 45
    assert f"after step {step}, which is saved" in (run / "log.txt").read_text()

    again = Job(tmp_path, "pretrain_dev.py", *words, command=PYTHON)
    code, out, err = again.end()
    assert code == 0, err
    assert f"continuing {run}" in out
    through = Job(tmp_path, "pretrain_dev.py", *words, "name=through", command=PYTHON)
    assert through.end()[0] == 0
    assert_same_weights(run, tmp_path / "logs" / "through")
    steps = [row["step"] for row in read_metrics(run) if row["kind"] == "train"]
    assert steps == list(range(1, 46))


def test_a_killed_rank_of_a_training_is_named_in_the_log(tmp_path: Path, data_path: Path) -> None:
    job = Job(tmp_path, "pretrain_dev.py", "nproc=2", "epochs=10000", "log_every=1", command=PYTHON)
    run = job.logs / "pretrain_dev"
    job.wait_for(lambda: metrics_count(run) > 2)
    found = re.search(r"rank 1 of 2: process (\d+)", (run / "log_rank1.txt").read_text())
    assert found is not None
    os.kill(int(found[1]), signal.SIGKILL)
    begun = time.monotonic()
    code, _, err = job.end()
    assert time.monotonic() - begun < 30
    assert code == 1
    assert f"rank 1 (process {found[1]}) was ended by SIGKILL" in err
    assert f"rank 1 (process {found[1]}" in (run / "log.txt").read_text().splitlines()[-1]


def test_the_same_script_runs_under_torchrun(tmp_path: Path, data_path: Path) -> None:
    code, out, err = Job(tmp_path, "pretrain_dev.py", "epochs=1", command=TORCHRUN).end()
    assert code == 0, err
    assert out.count("settings:") == 1
    run = tmp_path / "logs" / "pretrain_dev"
    assert "rank 1 of 2" in (run / "log_rank1.txt").read_text()
    assert [path.stem for path in list_checkpoints(run)] == ["epoch000", "epoch001"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


def started_one_by_one(folder: Path) -> list[Job]:
    """A training of two processes, started as Slurm does; the first steps are made."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    words = ("epochs=10000", "log_every=1", "workers=1")
    jobs = [
        Job(folder, "pretrain_dev.py", *words, command=PYTHON, environment={**place, "RANK": rank})
        for rank in ("0", "1")
    ]
    run = jobs[0].logs / "pretrain_dev"
    jobs[0].wait_for(lambda: metrics_count(run) > 2)
    return jobs


def test_processes_started_one_by_one_stop_together_when_one_is_signalled(
    tmp_path: Path, data_path: Path
) -> None:
    jobs = started_one_by_one(tmp_path)
    jobs[1].process.send_signal(signal.SIGUSR1)
    ends = [job.end() for job in jobs]
    assert [code for code, _, _ in ends] == [75, 75]
    assert "stopped by SIGUSR1" in ends[0][2]
    assert ends[1][1] == ""


def test_the_death_of_rank_0_ends_processes_started_one_by_one_with_one_message(
    tmp_path: Path, data_path: Path
) -> None:
    jobs = started_one_by_one(tmp_path)
    jobs[0].process.kill()
    code, _, err = jobs[1].end()
    jobs[0].end()
    assert code == 1
    assert "lost the connection to rank 0" in err
    assert "Traceback" not in err


def test_an_incomplete_environment_of_a_process_is_refused(tmp_path: Path, data_path: Path) -> None:
    place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    job = Job(tmp_path, "pretrain_dev.py", command=PYTHON, environment=place)
    code, _, err = job.end()
    assert code == 2
    assert "MASTER_PORT is not set" in err


def test_the_number_of_processes_is_that_of_the_gpus_or_as_asked(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    auto = replace(settings, device="auto")
    assert process_count(auto) == 4
    assert process_count(replace(auto, nproc=2)) == 2
    assert process_count(replace(settings, device="cpu")) == 1
    assert process_count(replace(settings, device="cpu", nproc=6)) == 6
    assert process_count(replace(settings, device="cuda:1")) == 1
    with pytest.raises(ConfigError, match=r"4 GPU\(s\) are visible"):
        process_count(replace(auto, nproc=5))
    with pytest.raises(ConfigError, match="is one GPU"):
        process_count(replace(settings, device="cuda:1", nproc=2))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert process_count(auto) == 1
