"""Toy runs of both stages in processes of their own, to be done harm to.

They run scripts/pretrain_dev.py and scripts/train_dev.py. Starting Python and importing torch takes
longer than a toy run does: most runs are forks of a process that has done that once
(`tests.faults.starter`), and some are started as users start them. Where a fault has to be put
into the process itself, `tests.faults.driver` does that.
"""

import atexit
import errno
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch

from banding_removal.config.settings import REPOSITORY
from banding_removal.data.phantom.files import write_dataset
from banding_removal.data.phantom.spec import DEMO
from banding_removal.errors import CheckpointError
from banding_removal.runs.checkpoint import find_checkpoint, load_checkpoint
from banding_removal.runs.log import read_rows
from tests.faults.driver import FAULT

EVERY = 5  # steps between checkpoints
PATIENCE_S = 1800.0  # for anything that must come: a machine may be very busy

PHANTOM = replace(
    DEMO, kspace_size=(32, 32), target_size=(24, 24), coils=2, acquired=(1, 30), slices=4
)
SMALL = (
    *("device=cpu", "cascades=1", "chans=2", "pools=1", "sens_chans=2", "acs_lines=[6]"),
    *("workers=0", "log_every=1", "grid_slices=2", f"checkpoint_every={EVERY}", "dropout=0.1"),
    *("train_filter.magnet=null", "val_filter.magnet=null"),
)
STAGES = {
    1: ("pretrain_dev.py", "pretrain_dev", ()),
    2: (
        "train_dev.py",
        "train_dev",
        (
            *("epoch_fraction=1", "validate_every=1", "grid_every=1"),
            *("adversary=simple", "adversary_chans=8", "paired=true", "adversary_replay=4"),
            "adversary_pretrain_steps=4",
        ),
    ),
}


class FaultError(Exception):
    """What should have happened to a run did not."""


@dataclass(frozen=True, kw_only=True)
class Toy:
    """A run of one stage: a folder with its data and logs, and the words of its command."""

    folder: Path
    stage: int = 1
    nproc: int = 1
    words: tuple[str, ...] = ()
    slices: int = PHANTOM.slices  # of each of its three volumes

    @property
    def data(self) -> Path:
        """The phantom data set."""
        return self.folder / "data"

    @property
    def logs(self) -> Path:
        """The folder of runs."""
        return self.folder / "logs"

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.logs / STAGES[self.stage][1]

    @property
    def log(self) -> str:
        """What log.txt says."""
        return (self.run / "log.txt").read_text()

    def command(self, *words: str) -> list[str]:
        """Script and words, those given here last."""
        script, _, of_stage = STAGES[self.stage]
        places = (f"data_path={self.data}", f"logs={self.logs}", f"nproc={self.nproc}")
        return [str(REPOSITORY / "scripts" / script), *SMALL, *of_stage, *places, *self.words,
                *words]  # fmt: skip

    def prepare(self) -> "Toy":
        """Make the data and, for stage 2, a pretrained predictor."""
        self.folder.mkdir(parents=True, exist_ok=True)
        spec = replace(PHANTOM, slices=self.slices)
        write_dataset(self.data, spec, train_volumes=3, val_volumes=1, seed=0)
        before = self.logs / "pretrain_dev"
        if self.stage == 2 and not before.exists():
            # The same for all runs on such data: made once.
            first = replace(self, folder=self.folder.parent.parent / f"pretrained-{self.slices}")
            first = replace(first, stage=1, nproc=1, words=("epochs=1",))
            if not (first.folder / "complete").exists():
                complete(first.prepare())
                (first.folder / "complete").touch()
            shutil.copytree(first.run, before)
        return self

    def step(self) -> int:
        """Step of the newest row of figures."""
        return max((row["step"] for row in read_rows(self.run / "metrics.jsonl")), default=0)

    def saved(self) -> int:
        """Step of the newest sound checkpoint, 0 if there is none."""
        try:
            return load_checkpoint(find_checkpoint(self.run)).step
        except CheckpointError:
            return 0


class Started(Protocol):
    """A process that was started."""

    @property
    def pid(self) -> int:
        """Its number."""

    def poll(self) -> int | None:
        """Its exit status, once it has ended."""

    def wait(self, timeout: float) -> int:
        """Its exit status; raises subprocess.TimeoutExpired."""


class Fork:
    """A run forked by `tests.faults.starter`, of which there is one."""

    def __init__(
        self, toy: Toy, words: Sequence[str], output: Path, environment: dict[str, str]
    ) -> None:
        asked = {"start": toy.command(*words), "environment": environment}
        self.pid = int(_ask({**asked, "output": str(output), "folder": str(toy.folder)})["pid"])

    def poll(self) -> int | None:
        """Its exit status, once it has ended."""
        code = _ask({"poll": self.pid})["code"]
        return None if code is None else int(code)

    def wait(self, timeout: float) -> int:
        """Its exit status; raises subprocess.TimeoutExpired."""
        give_up = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > give_up:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.01)
        return code


def _ask(question: dict[str, Any]) -> dict[str, Any]:
    starter = _starter()
    assert starter.stdin is not None and starter.stdout is not None
    starter.stdin.write(json.dumps(question) + "\n")
    starter.stdin.flush()
    line = starter.stdout.readline()
    expect(line != "", f"the starter has ended with {starter.poll()}")
    answer: dict[str, Any] = json.loads(line)
    return answer


@functools.cache
def _starter() -> "subprocess.Popen[str]":
    """The process that forks runs; it ends when its input does."""
    starter = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.starter"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _path()},
    )
    atexit.register(starter.communicate)
    return starter


class Job:
    """The processes of one command. The `with` block leaves none of them behind."""

    def __init__(self, toy: Toy, *words: str, fault: str | None = None, cold: bool = False) -> None:
        """Start the command of a toy run.

        Args:
            toy: the run.
            words: laid over its own.
            fault: of `tests.faults.driver`, which then starts the script.
            cold: as a user does, with Python and nothing imported; of two processes, the first
                starts the others. Else as forks of one that has everything imported, two of them
                as torchrun starts them.
        """
        self.toy = toy
        self.said = toy.folder / f"job-{uuid.uuid4().hex}.txt"
        self.said.touch()  # it may be read before the job has opened it
        settled = {"OMP_NUM_THREADS": "1", "PYTHONPATH": _path()}
        if cold:
            driver = ["-m", "tests.faults.driver", fault] if fault else []
            with self.said.open("ab") as output:
                self.processes: list[Started] = [
                    subprocess.Popen(
                        [sys.executable, *driver, *toy.command(*words)],
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        cwd=toy.folder,
                        env={**os.environ, **settled},
                        start_new_session=True,
                    )
                ]
        else:
            places: list[dict[str, str]] = [{}]
            if toy.nproc > 1:
                shared = {"WORLD_SIZE": str(toy.nproc), "MASTER_ADDR": "localhost"}
                shared["MASTER_PORT"] = str(_free_port())
                places = [{**shared, "RANK": str(rank)} for rank in range(toy.nproc)]
            self.processes = [
                Fork(toy, words, self.said, {**settled, **place, FAULT: fault or ""})
                for place in places
            ]
        self.process = self.processes[0]
        self._groups = {process.pid for process in self.processes}

    def __enter__(self) -> "Job":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    @property
    def text(self) -> str:
        """What it said on the console so far."""
        return self.said.read_text(errors="replace")

    def members(self) -> list[int]:
        """Its processes that are alive, whoever their parent is now."""
        return [pid for pid, group in _alive() if group in self._groups]

    def wait_for(self, condition: Callable[[], bool], *, what: str, poll_s: float = 0.02) -> None:
        """Wait until something is so.

        Raises:
            FaultError: the job ended, or too much time passed.
        """
        give_up = time.monotonic() + PATIENCE_S
        while not condition():
            if (code := self.process.poll()) is not None:
                raise FaultError(f"ended with {code}, no {what}:\n{self.text}")
            if time.monotonic() > give_up:
                raise FaultError(f"no {what} within {PATIENCE_S:.0f} s:\n{self.text}")
            time.sleep(poll_s)

    def wait_for_step(self, step: int) -> None:
        """Wait until figures of a step are written."""
        self.wait_for(lambda: self.toy.step() >= step, what=f"step {step}")

    def send(self, number: int) -> None:
        """Signal the processes that were started."""
        for process in self.processes:
            os.kill(process.pid, number)

    def kill(self) -> None:
        """Kill all of its processes at once, as a machine that goes down does."""
        while members := self.members():
            for pid in members:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue  # ended meanwhile
            time.sleep(0.01)
        for process in self.processes:
            process.wait(PATIENCE_S)

    def end(self, within: float = PATIENCE_S) -> int:
        """The exit status, when it has ended by itself and left no process.

        Raises:
            FaultError: it has not.
        """
        give_up = time.monotonic() + within
        try:
            codes = [process.wait(max(0, give_up - time.monotonic())) for process in self.processes]
        except subprocess.TimeoutExpired as error:
            raise FaultError(f"has not ended within {within:.0f} s:\n{self.text}") from error
        # Loading processes look for their parent every five seconds.
        give_up = time.monotonic() + 15
        while left := self.members():
            if time.monotonic() > give_up:
                raise FaultError(f"{len(left)} processes outlive it: {left}")
            time.sleep(0.1)
        return codes[0]

    def ends_with(self, code: int, *texts: str, within: float = PATIENCE_S) -> None:
        """Expect an end with a status, and texts on the console.

        Raises:
            FaultError: it was another.
        """
        found = self.end(within)
        missing = [text for text in texts if not re.search(text, self.text)]
        expect(found == code, f"exit status {found} and not {code}:\n{self.text}")
        expect(not missing, f"not said: {missing}, but\n{self.text}")


def expect(condition: bool, otherwise: str) -> None:
    """Go on only if something is so.

    Raises:
        FaultError: it is not.
    """
    if not condition:
        raise FaultError(otherwise)


def complete(toy: Toy, *words: str) -> None:
    """Run, or go on, to the end.

    Raises:
        FaultError: that was not possible.
    """
    with Job(toy, *words) as job:
        job.ends_with(0)
    expect("the run is complete" in toy.log.splitlines()[-1], f"log ends with {toy.log[-300:]}")


def unharmed(toy: Toy) -> Toy:
    """The same run, complete and never harmed: two folders up, made once."""
    words = zlib.crc32(f"{toy.slices} {toy.words}".encode())
    place = toy.folder.parent.parent / f"unharmed-{toy.stage}-{toy.nproc}-{words:08x}"
    other = replace(toy, folder=place)
    if not (place / "complete").exists():
        shutil.rmtree(place, ignore_errors=True)
        complete(other.prepare())
        (place / "complete").touch()
    return other


def expect_same_end(toy: Toy, other: Toy) -> None:
    """Expect two complete runs to have the same weights, bit for bit, and the same figures.

    Raises:
        FaultError: something differs.
    """
    a, b = (load_checkpoint(find_checkpoint(one.run)) for one in (toy, other))
    expect(a.step == b.step, f"{a.step} steps and not {b.step}")
    for mine, its in ((a.predictor, b.predictor), (a.adversary or {}, b.adversary or {})):
        expect(mine.keys() == its.keys(), "other weights")
        for key, value in mine.items():
            expect(torch.equal(value, its[key]), f"{key} differs")
    steps = [row["step"] for row in read_rows(toy.run / "metrics.jsonl") if row["kind"] == "train"]
    expect(steps == [*range(1, a.step + 1)], f"figures of steps {steps}")
    left = [path.name for path in toy.run.rglob(".*") if path.name != ".lock"]
    expect(not left, f"left behind: {left}")


def same_end(toy: Toy) -> None:
    """Let a run that was harmed go on to its end, and expect that of one that was not.

    Raises:
        FaultError: it is another.
    """
    complete(toy)
    expect_same_end(toy, unharmed(toy))


def damage(path: Path, how: str) -> None:
    """Truncate a file, flip some of its bytes, or empty it."""
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = bytes(byte ^ 0xFF for byte in content[middle : middle + 16])
    path.write_bytes(
        {
            "truncated": content[:middle],
            "flipped": content[:middle] + flipped + content[middle + 16 :],
            "empty": b"",
        }[how]
    )


class SmallDisk:
    """A file system of a few megabytes in memory, mounted on a folder in the `with` block."""

    def __init__(self, folder: Path, megabytes: int = 8) -> None:
        self.folder = folder
        self.megabytes = megabytes
        self.is_read_only = False

    @staticmethod
    def why_not() -> str:
        """Why it cannot be had here; empty if it can."""
        if shutil.which("mount") is None or os.geteuid() != 0:
            return "mounting a small file system needs root"
        place = Path(f"/tmp/faults-{uuid.uuid4().hex}")
        place.mkdir()
        try:
            with SmallDisk(place):
                return ""
        except subprocess.CalledProcessError as error:
            return f"mounting is not allowed here: {error.stderr.decode().strip()}"
        finally:
            place.rmdir()

    def __enter__(self) -> "SmallDisk":
        self.folder.mkdir(parents=True, exist_ok=True)
        _mount("-t", "tmpfs", "-o", f"size={self.megabytes}m", "tmpfs", str(self.folder))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.is_read_only:
            self.read_only(False)
        _umount("-R", str(self.folder))

    def fill(self, but: int = 0) -> None:
        """Leave so many bytes free, none by default; a run may be writing meanwhile."""
        with (self.folder / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(2**12))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            file.truncate(max(0, file.tell() - but))

    def make_room(self) -> None:
        """Undo `fill`."""
        (self.folder / "filler").unlink()

    def read_only(self, yes: bool) -> None:
        """Let nothing be opened for writing any more, or again."""
        if yes:
            # Aside, where nothing is open: a mount with files open for writing stays as it is.
            aside = self.folder.with_name(f"{self.folder.name}-read-only")
            aside.mkdir()
            _mount("--bind", str(self.folder), str(aside))
            _mount("-o", "remount,ro,bind", str(aside))
            _mount("--bind", str(aside), str(self.folder))
            _umount(str(aside))
            aside.rmdir()
        else:
            _umount("-l", str(self.folder))
        self.is_read_only = yes


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """Of the least-squares line through (x, y)."""
    xs, ys = zip(*samples, strict=True)
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((a - x) ** 2 for a in xs)
    return sum((a - x) * (b - y) for a, b in samples) / spread if spread else 0.0


def process_figures(pids: Sequence[int]) -> dict[str, float]:
    """Memory (MB), open files, threads of processes together, and the machine's shared segments."""
    totals = {"rss_mb": 0.0, "files": 0.0, "threads": 0.0}
    for pid in pids:
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        totals["rss_mb"] += int(fields["VmRSS"].split()[0]) / 1024
        totals["threads"] += int(fields["Threads"])
        totals["files"] += len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208  # names are enough
    segments = sum(1 for path in Path("/dev/shm").iterdir() if path.name.startswith("torch_"))
    return {**totals, "segments": float(segments)}


def write_row(path: Path, row: dict[str, object]) -> None:
    """Add a line of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


def _umount(*words: str) -> None:
    subprocess.run(["umount", *words], check=True, capture_output=True)


def _alive() -> list[tuple[int, int]]:
    """Process and group of all processes that have not ended."""
    found = []
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # gone
        if fields[0] not in "ZX":
            found.append((int(path.name), int(fields[2])))
    return found


def _path() -> str:
    return f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])
