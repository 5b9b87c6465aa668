"""Starts a script with a fault inside: python -m tests.faults.driver FAULT script.py word ...

nan=N               the N-th training loss is NaN, in every process
nan=N,RANK          the same in one process only
explodes=N          from the N-th on, losses are multiplied by 1000 until the run is rolled back
always=N            from the N-th on, all losses are NaN
pause=REGEX         the first time that a file whose path matches is replaced, this takes ten
                    minutes; a file called `paused` in the current folder shows that it has begun
"""

import os
import re
import runpy
import sys
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from banding_removal import command_line
from banding_removal.config.settings import Settings
from banding_removal.processes.team import Team
from banding_removal.training import safeguard, step
from banding_removal.training.loop import train

PAUSED = "paused"
PAUSE_S = 600.0
FAULT = "FAULTS_FAULT"  # environment variable, for the processes that this one starts


def faulty_train(settings: Settings, team: Team) -> Path:
    """`train` with the fault that the environment names."""
    kind, _, value = os.environ[FAULT].partition("=")
    if kind == "pause":
        _pause(re.compile(value))
    elif kind:
        number, _, rank = value.partition(",")
        if not rank or int(rank) == team.rank:
            _spoil(kind, int(number))
    return train(settings, team)


def _spoil(kind: str, number: int) -> None:
    real, back = step.reconstruction_loss, safeguard.Safeguard.roll_back
    calls = 0

    def spoilt(*args: Any) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        loss, similarity = real(*args)
        if (kind == "nan" and calls == number) or (kind == "always" and calls >= number):
            return loss * float("nan"), similarity
        if kind == "explodes" and calls >= number:
            return 1000 * loss, similarity
        return loss, similarity

    def calmed(self: safeguard.Safeguard, *, to_validated: bool = False) -> None:
        nonlocal calls
        if kind == "explodes":
            calls = -(10**9)
        back(self, to_validated=to_validated)

    safeguard.EARLY = 2  # toy epochs are shorter than what else is early
    step.reconstruction_loss = spoilt  # type: ignore[assignment]
    safeguard.Safeguard.roll_back = calmed  # type: ignore[method-assign]


def _pause(pattern: re.Pattern[str]) -> None:
    real, mark = os.replace, Path(PAUSED)

    def slow(source: Any, target: Any, **other: Any) -> None:
        if pattern.search(str(target)) and not mark.exists():
            mark.touch()
            time.sleep(PAUSE_S)
        real(source, target, **other)

    os.replace = slow  # type: ignore[assignment]


def install() -> None:
    """Make the scripts of this process call `faulty_train`."""
    # Imported by name, as the processes that are started import it.
    from tests.faults.driver import faulty_train as importable

    command_line.train = importable  # type: ignore[assignment]


if __name__ == "__main__":
    _, os.environ[FAULT], *words = sys.argv
    install()
    sys.argv = words
    sys.orig_argv = [sys.executable, *words]
    runpy.run_path(words[0], run_name="__main__")
