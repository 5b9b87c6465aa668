"""Conditions that choose volumes from an index."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from banding_removal.data.volume import Volume

log = logging.getLogger(__name__)

Range = tuple[int | None, int | None]  # both ends included, None: open
FIELD_TOLERANCE = 1.0  # tesla


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

    def apply(self, volumes: Sequence[Volume], seed: int) -> list[Volume]:
        """The volumes that pass, in order; `seed` is that of the random fraction.

        Raises:
            ValueError: none passes; the message says how many each condition removed.
        """
        kept, removed = list(volumes), []
        for name, condition in self._conditions().items():
            passing = [volume for volume in kept if condition(volume)]
            if len(passing) < len(kept):
                removed.append(f"{name} removed {len(kept) - len(passing)}")
            kept = passing
        if not kept:
            raise ValueError(
                f"the volume filters leave none of {len(volumes)} volumes: {', '.join(removed)}"
            )
        if self.fraction < 1:
            count = max(1, round(self.fraction * len(kept)))
            chosen = np.random.default_rng(seed).permutation(len(kept))[:count]
            removed.append(f"fraction removed {len(kept) - count}")
            kept = [kept[i] for i in sorted(chosen)]
        if removed:
            log.info("%d of %d volumes kept: %s", len(kept), len(volumes), ", ".join(removed))
        return kept

    def _conditions(self) -> dict[str, Callable[[Volume], bool]]:
        """The conditions that are set, by name."""
        found: dict[str, Callable[[Volume], bool]] = {}
        if self.magnet is not None:
            magnet = self.magnet
            found["magnet"] = lambda v: (
                v.field_strength is not None and abs(v.field_strength - magnet) <= FIELD_TOLERANCE
            )
        sizes: dict[str, tuple[Range, Callable[[Volume], int | None]]] = {
            "width": (self.width, lambda v: v.width),
            "height": (self.height, lambda v: v.height),
            "target_height": (self.target_height, lambda v: v.target_size and v.target_size[0]),
            "target_width": (self.target_width, lambda v: v.target_size and v.target_size[1]),
            "coils": (self.coils, lambda v: 1 if v.coils is None else v.coils),
        }
        for name, (limits, measure) in sizes.items():
            if limits != (None, None):
                found[name] = lambda v, r=limits, m=measure: _inside(m(v), r)  # type: ignore[misc]
        if self.square_target:
            found["square_target"] = lambda v: (
                v.target_size is not None and v.target_size[0] == v.target_size[1]
            )
        if self.acquisitions:
            found["acquisitions"] = lambda v: v.acquisition in self.acquisitions
        if self.scanners:
            found["scanners"] = lambda v: v.scanner in self.scanners
        if self.acceleration is not None:
            found["acceleration"] = lambda v: v.acceleration == self.acceleration
        return found


def _inside(value: int | None, limits: Range) -> bool:
    low, high = limits
    return value is not None and (low is None or value >= low) and (high is None or value <= high)
