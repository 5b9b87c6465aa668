"""Which slices the readers see, in which orientation."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from banding_removal.data.volume import Volume
from banding_removal.errors import ConfigError
from banding_removal.evaluation.image_files import read_targets
from banding_removal.evaluation.image_sets import SliceRange
from banding_removal.metrics.low_signal import LOW_SIGNAL, volume_scale

log = logging.getLogger(__name__)

Orientation = Literal["x", "y"]
LOW_ANATOMY = 0.1  # slices with fewer bright pixels are mostly air


@dataclass(frozen=True, kw_only=True)
class Case:
    """A slice that is shown reconstructed by every set."""

    volume: str  # file name
    slice_index: int
    orientation: Orientation  # phase encoding along x, or along y
    low_anatomy: bool  # mostly air: less than a tenth of the pixels are brighter than 0.3 q

    @property
    def place(self) -> tuple[str, int]:
        """Volume and slice."""
        return self.volume, self.slice_index


def choose_cases(
    files: Sequence[Volume],
    *,
    slice_range: SliceRange,
    count: int,
    low_anatomy: float,
    both_orientations: bool,
    seed: int,
) -> list[Case]:
    """Different slices, spread evenly over the volumes; both orientations equally often.

    Args:
        files: with targets.
        slice_range: slices of each volume to choose from.
        count: number of cases.
        low_anatomy: share of slices that are mostly air; with fewer than that in the volumes, all
            of them are taken, and a warning is logged.
        both_orientations: False: phase encoding along x only.
        seed: of all choices.

    Raises:
        ConfigError: the volumes have fewer slices.
        VolumeError: a target cannot be read.
    """
    slices_of_kind = _slices_by_kind(files, slice_range)
    numbers = {kind: sum(map(len, slices.values())) for kind, slices in slices_of_kind.items()}
    if sum(numbers.values()) < count:
        raise ConfigError(
            f"the volumes have {sum(numbers.values())} slices, fewer than cases={count}"
        )
    wanted = round(low_anatomy * count)
    mostly_air = max(min(wanted, numbers[True]), count - numbers[False])
    if mostly_air != wanted:
        log.warning(
            "%d instead of %d cases are mostly air: the volumes have %d such slices and %d others",
            *(mostly_air, wanted, numbers[True], numbers[False]),
        )
    rng = np.random.default_rng(seed)
    cases = []
    for kind, number in ((True, mostly_air), (False, count - mostly_air)):
        chosen = _spread(slices_of_kind[kind], number, rng)
        along_y = np.zeros(number, bool)
        if both_orientations:
            along_y = rng.permutation(number) % 2 == 1
        cases += [
            Case(
                volume=volume,
                slice_index=index,
                orientation="y" if turned else "x",
                low_anatomy=kind,
            )
            for (volume, index), turned in zip(chosen, along_y, strict=True)
        ]
    return cases


def _slices_by_kind(
    files: Iterable[Volume], slice_range: SliceRange
) -> dict[bool, dict[str, list[int]]]:
    """Whether they are mostly air -> volume -> slices."""
    found: dict[bool, dict[str, list[int]]] = {True: defaultdict(list), False: defaultdict(list)}
    for file in files:
        targets = read_targets(file)
        level = LOW_SIGNAL * volume_scale(targets)
        for index in range(file.slices)[slice(*slice_range)]:
            mostly_air = bool((targets[index] > level).mean() < LOW_ANATOMY)
            found[mostly_air][file.name].append(index)
    return found


def _spread(
    slices: Mapping[str, Sequence[int]], count: int, rng: np.random.Generator
) -> list[tuple[str, int]]:
    """So many (volume, slice): one of each volume, then a second one of each, and so on."""
    rounds = [
        (turn, place, volume, int(index))
        for place, volume in enumerate(rng.permutation(sorted(slices)).tolist())
        for turn, index in enumerate(rng.permutation(slices[volume]))
    ]
    return [(volume, index) for _, _, volume, index in sorted(rounds)[:count]]
