"""Conditions that choose volumes from an index."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from banding_removal.data.volume import Volume

log = logging.getLogger(__name__)

Range = tuple[int | None, int | None]  # both ends included, None: open
FIELD_TOLERANCE = 1.0  # tesla
MAX_NAMED = 8  # values in a message


@dataclass(frozen=True, kw_only=True)
class VolumeFilter:
    """Conditions on a volume; each is off when unset, and all that are set must hold."""

    magnet: float | None = None  # field strength within 1 T of this, tesla
    width: Range = (None, None)  # k-space columns (phase encode)
    height: Range = (None, None)  # k-space rows (readout)
    target_width: Range = (None, None)
    target_height: Range = (None, None)
    square_target: bool = False  # target as high as wide
    coils: Range = (None, None)
    acquisitions: tuple[str, ...] = ()  # e.g. CORPD_FBK, CORPDFS_FBK, AXT1
    scanners: tuple[str, ...] = ()  # systemModel of the header
    acceleration: int | None = None  # files that the scanner undersampled by this factor
    fraction: float = 1.0  # random part of the volumes that pass all other conditions

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction of the volumes must be in (0, 1], got {self.fraction}")

    def apply(self, volumes: Sequence[Volume], seed: int, setting: str = "filter") -> list[Volume]:
        """The volumes that pass, in order.

        Args:
            volumes: from an index.
            seed: of the random fraction.
            setting: name of the setting that holds this filter, for messages.

        Raises:
            ValueError: none passes; the message says how many each condition removed, what was
                found instead, and how to switch the last one off.
        """
        kept, removed = list(volumes), []
        for name, condition in self._conditions().items():
            passing = [volume for volume in kept if condition.passes(volume)]
            if len(passing) < len(kept):
                removed.append(f"{name} removed {len(kept) - len(passing)}")
            if kept and not passing:
                found = f"{condition.what} found: {_counted(map(condition.value, kept))}"
                raise ValueError(
                    f"the volume filters leave none of {len(volumes)} volumes: "
                    f"{', '.join(removed)}.\n{found}; {setting}.{name}={condition.off} takes all"
                )
            kept = passing
        if self.fraction < 1:
            count = max(1, round(self.fraction * len(kept)))
            chosen = np.random.default_rng(seed).permutation(len(kept))[:count]
            removed.append(f"fraction removed {len(kept) - count}")
            kept = [kept[i] for i in sorted(chosen)]
        if removed:
            log.info("%d of %d volumes kept: %s", len(kept), len(volumes), ", ".join(removed))
        return kept

    def _conditions(self) -> dict[str, "_Condition"]:
        """The conditions that are set, by name."""
        found: dict[str, _Condition] = {}
        if self.magnet is not None:
            magnet = self.magnet
            found["magnet"] = _Condition(
                "field strengths",
                lambda v: None if v.field_strength is None else f"{v.field_strength:g} T",
                lambda v: (
                    v.field_strength is not None
                    and abs(v.field_strength - magnet) <= FIELD_TOLERANCE
                ),
            )
        sizes: dict[str, tuple[Range, str, Callable[[Volume], int | None]]] = {
            "width": (self.width, "widths", lambda v: v.width),
            "height": (self.height, "heights", lambda v: v.height),
            "target_height": (self.target_height, "target heights", lambda v: _target(v)[0]),
            "target_width": (self.target_width, "target widths", lambda v: _target(v)[1]),
            "coils": (self.coils, "numbers of coils", lambda v: 1 if v.coils is None else v.coils),
        }
        for name, (limits, what, measure) in sizes.items():
            if limits != (None, None):
                found[name] = _within(limits, what, measure)
        if self.square_target:
            found["square_target"] = _Condition(
                "target sizes",
                lambda v: v.target_size and "{} x {}".format(*v.target_size),
                lambda v: v.target_size is not None and v.target_size[0] == v.target_size[1],
                off="false",
            )
        if self.acquisitions:
            found["acquisitions"] = _Condition(
                "acquisitions",
                lambda v: v.acquisition,
                lambda v: v.acquisition in self.acquisitions,
                off="[]",
            )
        if self.scanners:
            found["scanners"] = _Condition(
                "scanners", lambda v: v.scanner, lambda v: v.scanner in self.scanners, off="[]"
            )
        if self.acceleration is not None:
            found["acceleration"] = _Condition(
                "accelerations by the scanner",
                lambda v: v.acceleration,
                lambda v: v.acceleration == self.acceleration,
            )
        return found


@dataclass(frozen=True)
class _Condition:
    """What a condition looks at, in words and as a value, and whether a volume meets it."""

    what: str
    value: Callable[[Volume], str | int | None]  # None: the file does not give it
    passes: Callable[[Volume], bool]
    off: str = "null"  # the value of the setting that switches it off


def _within(limits: Range, what: str, measure: Callable[[Volume], int | None]) -> _Condition:
    return _Condition(what, measure, lambda v: _inside(measure(v), limits), off="[null,null]")


def _target(volume: Volume) -> tuple[int | None, int | None]:
    return volume.target_size or (None, None)


def _counted(values: Iterable[str | int | None]) -> str:
    """Values with the number of volumes of each, the most frequent ones first."""
    counts = Counter(values).most_common()
    # The unit, once: "none given (12 volumes), 0.3 T (6)".
    shown = [f"{'none given' if v is None else v} ({n}" for v, n in counts[:MAX_NAMED]]
    shown = [f"{shown[0]} volume{'s' if counts[0][1] > 1 else ''})", *(s + ")" for s in shown[1:])]
    return ", ".join(shown) + (", ..." if len(counts) > MAX_NAMED else "")


def _inside(value: int | None, limits: Range) -> bool:
    low, high = limits
    return value is not None and (low is None or value >= low) and (high is None or value <= high)
