"""Several processes: together they compute what one does, and end together."""

import math
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
from typing import Any

import pytest
import torch
from torch import Tensor

from banding_removal.config.settings import Settings
from banding_removal.data.sampler import shares_by_volume
from banding_removal.errors import ConfigError, RunInUseError
from banding_removal.processes.exit_status import RankError
from banding_removal.processes.launch import launch, process_count
from banding_removal.processes.signals import Stopped
from banding_removal.processes.team import Team
from banding_removal.runs.build import make_datasets
from banding_removal.runs.checkpoint import find_checkpoint, list_checkpoints, load_checkpoint
from banding_removal.training import loop
from banding_removal.training.loop import train
from tests.support import distributed_jobs as jobs
from tests.support.distributed_jobs import Plain
from tests.support.fastmri_files import write_volume
from tests.support.runs import SCRIPTS, assert_same_weights, read_metrics


@pytest.fixture(autouse=True)
def importable_in_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
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
    stage_2 = replace(three_volumes, adversary="simple", adversary_chans=8, reg_param=5.0)
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
    assert shared.figures == pytest.approx(alone.figures, rel=0, abs=0, nan_ok=True)
    assert math.isfinite(shared.figures["banding"])
    assert shared.volumes == alone.volumes
    assert list(shared.volumes) == list(alone.volumes)
    for one, other in zip(shared.display, alone.display, strict=True):
        assert (one.name, one.slice_index) == (other.name, other.slice_index)
        assert torch.equal(one.reconstruction, other.reconstruction)


@pytest.mark.parametrize(("stage", "paired"), [(1, False), (2, False), (2, True)])
def test_a_run_of_two_processes_equals_one_that_accumulates(
    settings: Settings, stage: int, paired: bool
) -> None:
    # 6 slices in steps of 4 batches (pairs): the last step is filled up
    settings = replace(settings, accumulate=2, workers=1, paired=paired)
    if stage == 2:
        settings = replace(settings, adversary="simple", adversary_chans=8)
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
    # The first process writes, the other one keeps its own log.
    assert "the run is complete" in (together / "log_rank1.txt").read_text()
    assert len([row for row in read_metrics(together) if row["kind"] == "train"]) == 4
    assert [p.name for p in settings.logs.glob("together*")] == ["together"]


def test_two_processes_resume_bit_for_bit_each_with_its_own_earlier_reconstructions(
    settings: Settings,
) -> None:
    settings = replace(
        settings,
        nproc=2,
        adversary="simple",
        adversary_chans=8,
        paired=True,
        adversary_replay=4,
        adversary_warmup_steps=2,
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


TOY = ("cascades=1", "chans=2", "pools=1", "sens_chans=2", "acs_lines=[6]", "device=cpu")


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


PYTHON = (sys.executable,)
IPYTHON = (sys.executable, "-m", "IPython")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def steps_of(run: Path) -> int:
    return len(read_metrics(run)) if (run / "metrics.jsonl").exists() else 0


def test_sigterm_saves_and_the_same_command_ends_with_the_weights_of_an_uninterrupted_run(
    tmp_path: Path, data_path: Path
) -> None:
    write_volume(data_path / "multicoil_train" / "long.h5", slices=60)
    words = ["nproc=2", "epochs=3", "log_every=1", "dropout=0.1", "workers=1"]
    job = Job(tmp_path, "pretrain_dev.py", *words, command=IPYTHON)
    run = tmp_path / "logs" / "pretrain_dev"
    job.wait_for(lambda: steps_of(run) > 7)
    job.process.send_signal(signal.SIGTERM)
    code, out, err = job.end()
    assert code == 75, err
    assert "stopped by SIGTERM after step" in err
    assert "Traceback" not in err
    assert out.count("settings:") == 1  # only the first process speaks
    step = load_checkpoint(find_checkpoint(run)).step
    assert 7 < step < 99
    assert f"after step {step}, which is saved" in (run / "log.txt").read_text()

    again = Job(tmp_path, "pretrain_dev.py", *words, command=PYTHON)
    code, out, err = again.end()
    assert code == 0, err
    assert f"going on with {run}" in out
    through = Job(tmp_path, "pretrain_dev.py", *words, "name=through", command=PYTHON)
    assert through.end()[0] == 0
    assert_same_weights(run, tmp_path / "logs" / "through")
    steps = [row["step"] for row in read_metrics(run) if row["kind"] == "train"]
    assert steps == list(range(1, 100))


def test_a_killed_rank_of_a_training_is_named_in_the_log(tmp_path: Path, data_path: Path) -> None:
    job = Job(tmp_path, "pretrain_dev.py", "nproc=2", "epochs=10000", "log_every=1", command=PYTHON)
    run = job.logs / "pretrain_dev"
    job.wait_for(lambda: steps_of(run) > 2)
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


def test_processes_started_one_by_one_stop_together_when_one_is_told_to(
    tmp_path: Path, data_path: Path
) -> None:
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    words = ("epochs=10000", "log_every=1", "workers=1")
    jobs = [
        Job(
            tmp_path, "pretrain_dev.py", *words, command=PYTHON, environment={**place, "RANK": rank}
        )
        for rank in ("0", "1")
    ]
    run = jobs[0].logs / "pretrain_dev"
    jobs[0].wait_for(lambda: steps_of(run) > 2)
    jobs[1].process.send_signal(signal.SIGUSR1)
    ends = [job.end() for job in jobs]
    assert [code for code, _, _ in ends] == [75, 75]
    assert "stopped by SIGUSR1" in ends[0][2]
    assert ends[1][1] == ""


def test_a_place_among_processes_that_is_half_given_is_refused(
    tmp_path: Path, data_path: Path
) -> None:
    place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    job = Job(tmp_path, "pretrain_dev.py", command=PYTHON, environment=place)
    code, _, err = job.end()
    assert code == 2
    assert "MASTER_PORT must be set" in err


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
    with pytest.raises(ConfigError, match="4 GPUs are visible"):
        process_count(replace(auto, nproc=5))
    with pytest.raises(ConfigError, match="is one GPU"):
        process_count(replace(settings, device="cuda:1", nproc=2))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert process_count(auto) == 1


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


# --- stopping in one process: at any moment, with the same weights in the end ---


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
        ("make_datasets", 1, 1, 0),
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


def test_a_warm_up_that_is_stopped_is_repeated(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(settings, adversary="simple", adversary_chans=8, adversary_warmup_steps=5)
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
        if steps_of(settings.logs / "toy") == 5:
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
        "import sys, pathlib; from banding_removal.runs.folder import RunLock; lock = RunLock();"
        "lock.take(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(settings.logs / "toy")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(RunInUseError, match="toy is in use"):
            train(replace(settings, resume=settings.logs / "toy"))
        with pytest.raises(RunInUseError, match=r"toy is in use .* with these very settings"):
            train(settings)
        assert train(replace(settings, seed=1, epochs=1)).name == "toy_2"
        other.kill()
    assert train(replace(settings, resume=settings.logs / "toy")).name == "toy"
