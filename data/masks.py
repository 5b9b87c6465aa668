"""Undersampling masks over the phase-encode columns of centred k-space.

A mask is the fully sampled centre (ACS) plus lines placed by the rule of its kind, both cut to the
columns that the scanner acquired.
"""

import logging
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from banding_removal.data.mask_rules import (
    RULES,
    WITH_CENTRE_IN_RATE,
    BoolArray,
    MaskKind,
    Request,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Mask:
    """A drawn mask: the columns, bool (W,), and the number of centre lines in it."""

    columns: BoolArray
    acs_lines: int

    @classmethod
    def of_scanner(cls, columns: BoolArray) -> "Mask":
        """The mask of a volume that the scanner undersampled.

        Its centre is the widest centred block of measured columns, at least 1.
        """
        width = len(columns)
        for acs_lines in range(1, width + 1):
            first = (width - acs_lines + 1) // 2
            if not columns[first : first + acs_lines].all():
                return cls(columns=columns, acs_lines=max(acs_lines - 1, 1))
        return cls(columns=columns, acs_lines=width)


@dataclass(frozen=True, kw_only=True)
class MaskSampler:
    """Draws masks of one kind.

    Args:
        kind: which rule places the lines (see `RULES`).
        accelerations: factors a; one is drawn for each mask.
        acs: numbers of centre columns, or fractions of W for `*_fraction`; one is drawn, for
            `fastmri_*` that which goes with the acceleration.

    Raises:
        ValueError: unknown kind, acceleration below 1, or a centre that does not suit the kind.
    """

    kind: MaskKind
    accelerations: tuple[int, ...]
    acs: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.kind not in RULES:
            raise ValueError(f"mask {self.kind!r} is not one of {', '.join(RULES)}")
        if not self.accelerations or min(self.accelerations) < 1:
            raise ValueError(f"accelerations must be at least 1, got {self.accelerations}")
        if not self.acs or min(self.acs) <= 0:
            raise ValueError(f"a mask needs a positive number of centre lines, got {self.acs}")
        if self._centre_is_fraction and max(self.acs) >= 1:
            raise ValueError(f"{self.kind} needs centre fractions below 1, got {self.acs}")
        if not self._centre_is_fraction and any(acs != int(acs) for acs in self.acs):
            raise ValueError(f"{self.kind} needs whole numbers of centre lines, got {self.acs}")
        if self._draws_pairs and len(self.acs) != len(self.accelerations):
            raise ValueError(
                f"{self.kind} needs as many centre fractions as accelerations, got {self.acs} and "
                f"{self.accelerations}"
            )

    @property
    def _draws_pairs(self) -> bool:
        return self.kind.startswith("fastmri_")

    @property
    def _centre_is_fraction(self) -> bool:
        return self.kind.endswith("_fraction")

    def check(self, width: int) -> None:
        """Check that every combination of centre and acceleration fits `width` columns.

        Warns of a centre that is more than the acceleration asks for, and is measured alone.

        Raises:
            ValueError: one does not fit, as in `draw`.
        """
        pairs = zip if self._draws_pairs else product
        for acs, acceleration in pairs(self.acs, self.accelerations):
            single = replace(self, acs=(acs,), accelerations=(acceleration,))
            lines = single.draw(width, np.random.RandomState(0)).acs_lines
            if self.kind in WITH_CENTRE_IN_RATE and lines * acceleration > width:
                log.warning(
                    "mask %s: %d centre lines of %d columns are more than acceleration %d "
                    "measures, so nothing else is measured",
                    *(self.kind, lines, width, acceleration),
                )

    def draw(
        self,
        width: int,
        rng: np.random.RandomState,
        *,
        offset: int | None = None,
        acquired: tuple[int, int] | None = None,
    ) -> Mask:
        """Draw a mask for `width` columns.

        Args:
            width: number of columns W.
            rng: source of all draws, in the order centre, acceleration, lines.
            offset: where the lines start, for the kinds that have a start; None: it is drawn.
            acquired: columns [left, right) that were measured; None: all.

        Raises:
            ValueError: more centre lines than columns.
        """
        first = int(rng.randint(0, len(self.acs)))
        second = first if self._draws_pairs else int(rng.randint(0, len(self.accelerations)))
        acs, acceleration = self.acs[first], self.accelerations[second]
        acs_lines = round(width * acs) if self._centre_is_fraction else int(acs)
        if not 0 < acs_lines <= width:
            raise ValueError(f"{acs_lines} centre lines do not fit into {width} columns")
        columns = RULES[self.kind](Request(width, acceleration, acs_lines, offset, rng))
        left = (width - acs_lines + 1) // 2
        columns[left : left + acs_lines] = True
        if acquired is not None:
            columns[: acquired[0]] = False
            columns[acquired[1] :] = False
        return Mask(columns=columns, acs_lines=acs_lines)


def acquired_columns(kspace: NDArray[np.complex64]) -> tuple[int, int]:
    """Columns [left, right) of (coil, H, W) outside which all is zero; [0, W) if everything is."""
    width = kspace.shape[-1]
    found: NDArray[np.bool_] = np.logical_or.reduce(kspace[:, kspace.shape[1] // 2], axis=0)
    columns = np.flatnonzero(found)
    left, right = (columns[0], columns[-1] + 1) if columns.size else (width, width)
    # The middle row nearly always has them all: only the columns outside need a full look.
    found[:left] = kspace[..., :left].any(axis=(0, 1))
    found[right:] = kspace[..., right:].any(axis=(0, 1))
    columns = np.flatnonzero(found)
    return (int(columns[0]), int(columns[-1]) + 1) if columns.size else (0, width)


def seeded_by_name(name: str) -> np.random.RandomState:
    """The generator of a volume's mask: seeded by the file name, the same in every run."""
    return np.random.RandomState(tuple(map(ord, name)))


def seeded_by_draw(seed: int, epoch: int, name: str, slice_index: int) -> np.random.RandomState:
    """The generator of one slice in one epoch: its draws depend on these four values alone."""
    sequence = np.random.SeedSequence([seed, epoch, slice_index, *name.encode()])
    return np.random.RandomState(sequence.generate_state(4))
