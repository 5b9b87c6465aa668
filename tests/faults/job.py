"""The processes of one command, started, signalled, killed and waited for.

It takes longer to start Python and import torch than to run a toy. So most jobs are forks of a
process that has done that once (`tests.faults.starter`), and some are started as users start them.
Where a fault has to happen inside the process, `tests.faults.driver` puts it there.
"""

import atexit
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from banding_removal.config.settings import REPOSITORY
from tests.faults.driver import FAULT
from tests.faults.toy import FaultError, Toy, expect

PATIENCE_S = 1800.0  # for anything to happen: the machine may be very busy


class Started(Protocol):
    """A process that was started."""

    @property
    def pid(self) -> int:
        """Its process id."""

    def poll(self) -> int | None:
        """Its exit status, once it has ended."""

    def wait(self, timeout: float) -> int:
        """Its exit status; raises subprocess.TimeoutExpired."""


class Fork:
    """A process forked by `tests.faults.starter`."""

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
    """The one process that forks others; it ends when its input ends."""
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
            words: settings that override its own.
            fault: see `tests.faults.driver`, which then starts the script.
            cold: start a new Python, as a user does; the script itself starts the processes.
                Otherwise fork each process from one that has imported everything, with the
                environment that torchrun would set.
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
        """Its console output so far."""
        return self.said.read_text(errors="replace")

    def members(self) -> list[int]:
        """Its processes that are alive, even if their parent has died."""
        return [pid for pid, group in _alive() if group in self._groups]

    def trainers(self) -> list[int]:
        """Process ids of the training processes, by rank."""
        if self.toy.nproc == 1:
            return [self.process.pid]
        logs = [self.toy.run / "log.txt", self.toy.run / "log_rank1.txt"]
        found = [re.findall(r"rank \d of 2: process (\d+)", path.read_text())[-1] for path in logs]
        return [int(pid) for pid in found]

    def wait_for(self, condition: Callable[[], bool], *, what: str, poll_s: float = 0.02) -> None:
        """Wait for a condition.

        Raises:
            FaultError: the job ended first, or it took too long.
        """
        give_up = time.monotonic() + PATIENCE_S
        while not condition():
            if (code := self.process.poll()) is not None:
                raise FaultError(f"ended with {code}, no {what}:\n{self.text}")
            if time.monotonic() > give_up:
                raise FaultError(f"no {what} within {PATIENCE_S:.0f} s:\n{self.text}")
            time.sleep(poll_s)

    def wait_for_step(self, step: int) -> None:
        """Wait until the metrics of a step are written."""
        self.wait_for(lambda: self.toy.step() >= step, what=f"step {step}")

    def send(self, number: int) -> None:
        """Signal the processes that were started."""
        for process in self.processes:
            os.kill(process.pid, number)

    def kill(self) -> None:
        """Kill all of its processes at once, as when the machine goes down."""
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
        """Wait until it ends by itself; its exit status.

        Raises:
            FaultError: it did not end in time, or some of its processes are still alive.
        """
        give_up = time.monotonic() + within
        try:
            codes = [process.wait(max(0, give_up - time.monotonic())) for process in self.processes]
        except subprocess.TimeoutExpired as error:
            raise FaultError(f"has not ended within {within:.0f} s:\n{self.text}") from error
        # Data loading workers check every five seconds whether their parent is alive.
        give_up = time.monotonic() + 15
        while left := self.members():
            if time.monotonic() > give_up:
                raise FaultError(f"{len(left)} processes outlive it: {left}")
            time.sleep(0.1)
        return codes[0]

    def ends_with(self, code: int, *texts: str, within: float = PATIENCE_S) -> None:
        """Check its exit status, and that its console output matches some patterns.

        Raises:
            FaultError: something differs.
        """
        found = self.end(within)
        missing = [text for text in texts if not re.search(text, self.text)]
        expect(found == code, f"exit status {found} and not {code}:\n{self.text}")
        expect(not missing, f"not said: {missing}, but\n{self.text}")


def parent_of(pid: int) -> int:
    """Process id of a process's parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _alive() -> list[tuple[int, int]]:
    """Process id and group of all running processes of this machine."""
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
