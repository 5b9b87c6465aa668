"""Settings of a reader study: to make it, and to score it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from banding_removal.config.bounds import bounded, check_bounds
from banding_removal.config.settings import REPOSITORY
from banding_removal.evaluation.sets_settings import SetsSettings

Rating = Literal["rank", "score"]
FEWEST_SETS, MOST_SETS = 2, 4  # side by side
BEST_SCORE = 5


@dataclass(frozen=True, kw_only=True)
class MakeSettings(SetsSettings):
    """What the readers see. The seed chooses the slices; blinding is never reproducible."""

    cases: int = bounded(60, at_least=1)  # different slices; the repeated ones come on top
    readers: int = bounded(4, at_least=1, at_most=99)
    rating: Rating = "rank"  # rank: 1 is best, ties allowed; score: 1 to 5, 5 is best
    orientations: Literal["both", "x"] = "both"  # of phase encoding; x: as acquired only
    repeats: float = bounded(0.1, at_least=0, at_most=0.5)  # share of the cases shown twice
    low_anatomy: float = bounded(0.1, at_least=0, at_most=1)  # share of slices that are mostly air
    output: Path = REPOSITORY / "logs" / "reader_study"  # a new folder


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """Which ratings are scored."""

    study: Path = MakeSettings.output  # the folder that `make` wrote
    ratings: tuple[Path, ...] = ()  # the files that the readers sent back
    output: Path | None = None  # null: the folder `results` of the study
    difference: float = bounded(0.5, above=0)  # in mean rank: how many cases would show it?
    seed: int = bounded(0, at_least=0)  # of resampling

    def __post_init__(self) -> None:
        check_bounds(self)
