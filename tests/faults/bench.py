"""What a kind of fault is given, and what it returns."""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from banding_removal.config.settings import REPOSITORY
from tests.faults.ends import prepare
from tests.faults.toy import Toy


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Which faults are tried, and how often."""

    folder: Path = REPOSITORY / "logs" / "faults"
    kinds: tuple[str, ...] = ()  # none: all
    stages: tuple[int, ...] = (1, 2)
    processes: tuple[int, ...] = (1, 2)
    kills: int = 50  # at random moments of each run
    epochs: int = 8  # of those runs, which must not complete before they are killed
    slices: int = 12  # of each of its volumes
    steps: int = 20_000  # of the soak test
    seed: int = 0
    again: bool = False  # repeat what is done already


@dataclass(frozen=True, kw_only=True)
class Try:
    """One fault, tried once."""

    fault: str
    lost: int = 0  # steps
    note: str = ""
    survived: bool = True


@dataclass(kw_only=True)
class Bench:
    """What a kind of fault is given."""

    toy: Toy
    settings: Faults
    random: Random = field(default_factory=Random)

    def fresh(self, name: str, *words: str, slices: int = 4, epochs: int = 2) -> Toy:
        """A toy run in a new folder with its data and, for stage 2, a pretrained predictor.

        It has the same number of steps for one process and for two, whose epochs are half as long.
        """
        folder = self.toy.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        words = (*self.toy.words, f"epochs={epochs * self.toy.nproc}", *words)
        return prepare(replace(self.toy, folder=folder, words=words, slices=slices))
