"""Score a study: unblind the ratings, and compute and write its statistics."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from banding_removal.errors import ConfigError
from banding_removal.metrics.bootstrap import Estimate
from banding_removal.reader_study.key import Key, read_key
from banding_removal.reader_study.ratings import Ratings, read_ratings
from banding_removal.reader_study.settings import ScoreSettings
from banding_removal.reader_study.statistics import (
    Agreement,
    Comparison,
    Draws,
    agreement,
    compare_sets,
    ranks,
)


@dataclass(frozen=True, kw_only=True)
class SetMean:
    """Ratings of one set by one criterion."""

    criterion: str
    set: str
    slices: str  # all; with anatomy; mostly air; phase encoding along x, along y
    cases: int
    rank: Estimate  # 1 is best
    score: Estimate | None  # None: the readers ranked the images


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """Everything about a study."""

    key: Key
    readers: tuple[str, ...]
    seconds: tuple[float, ...]  # that each reader took
    means: tuple[SetMean, ...]
    comparisons: tuple[Comparison, ...]
    agreements: tuple[Agreement, ...]
    difference: float  # to which `volumes_needed` refers


def score_files(settings: ScoreSettings) -> StudyResult:
    """Score the ratings in files.

    Raises:
        ConfigError: no file is named.
        StudyError: the study or files of ratings cannot be used; all are named.
    """
    if not settings.ratings:
        raise ConfigError("name the readers' files: 'ratings=[reader_1.json, reader_2.json]'")
    key = read_key(settings.study)
    ratings = read_ratings(settings.ratings, key)
    return score(key, ratings, difference=settings.difference, seed=settings.seed)


def score(key: Key, ratings: Ratings, *, difference: float, seed: int) -> StudyResult:
    """Statistics of unblinded ratings; repeated cases count once, as they were first rated."""
    highest_is_best = key.rating == "score"
    ranked = {c: ranks(v, highest_is_best=highest_is_best) for c, v in ratings.first.items()}
    volumes = [case.volume for case in key.cases]
    # Ranks 1, 1, 2 and 1, 1, 3 mean the same; scores have a meaning of their own.
    again = ratings.again
    if key.rating == "rank":
        again = {c: ranks(v, highest_is_best=False) for c, v in again.items()}
    first = ratings.first if key.rating == "score" else ranked
    return StudyResult(
        key=key,
        readers=ratings.readers,
        seconds=tuple(ratings.seconds.tolist()),
        means=tuple(_means(key, ratings, ranked, seed)),
        comparisons=tuple(
            compare_sets(
                ranked,
                key.sets,
                volumes,
                difference=difference,
                draws=Draws(volumes, len(ratings.readers), seed),
            )
        ),
        agreements=tuple(agreement(c, first[c], again[c]) for c in key.criteria),
        difference=difference,
    )


def _means(
    key: Key, ratings: Ratings, ranked: dict[str, np.ndarray], seed: int
) -> Iterator[SetMean]:
    mostly_air = np.array([case.low_anatomy for case in key.cases])
    along_y = np.array([case.orientation == "y" for case in key.cases])
    kinds = {
        "all": np.ones(len(mostly_air), bool),
        "with anatomy": ~mostly_air,
        "mostly air": mostly_air,
        "phase encoding along x": ~along_y,
        "phase encoding along y": along_y,
    }
    for kind, chosen in kinds.items():
        if not chosen.any() or (kind != "all" and chosen.all()):
            continue
        volumes = [key.cases[i].volume for i in np.flatnonzero(chosen)]
        draws = Draws(volumes, len(ratings.readers), seed)
        for criterion in key.criteria:
            for number, name in enumerate(key.sets):
                score = None
                if key.rating == "score":
                    score = draws.mean(ratings.first[criterion][:, chosen, number])
                yield SetMean(
                    criterion=criterion,
                    set=name,
                    slices=kind,
                    cases=int(chosen.sum()),
                    rank=draws.mean(ranked[criterion][:, chosen, number]),
                    score=score,
                )
