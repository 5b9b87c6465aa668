"""Undersampling masks over the phase-encode columns of centred k-space.

A mask is the fully sampled centre (ACS) together with lines spaced by the acceleration, within
the columns that the scanner acquired. `magic` is offset sampling (Defazio, "Offset Sampling
Improves Deep Learning based Accelerated MRI Reconstructions by Exploiting Symmetry",
arXiv 1912.01101): lines are placed so that the conjugate mirror image of each falls between lines.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

MaskKind = Literal[
    "magic",
    "magic_v2",
    "quadrature",
    "equispaced",
    "equispaced_v2",
    "random",
    "magic_fraction",
    "equispaced_fraction",
    "random_fraction",
]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Mask:
    """A drawn mask: the columns, bool (W,), and the number of centre lines in it."""

    columns: BoolArray
    acs_lines: int


@dataclass(frozen=True, kw_only=True)
class MaskSampler:
    """Draws masks of one kind.

    Args:
        kind: the rule for the lines between centre and edge:
            `magic`: ones at 1::a of the positive and 2::a of the negative frequencies for an
                even offset, at 3::a and 0::a for an odd one, as published. The starts suit a = 4.
            `magic_v2`: the same with the offset taken modulo a first.
            `quadrature`: the same idea for any a: lines at frequencies p + a j, with p = a/4 for
                an even offset and -a/4 for an odd one; equals `magic` at a = 4.
            `equispaced`: columns offset::a; `equispaced_v2`: offset modulo a first.
            `random`: each column with probability (W/a - acs) / (W - acs).
            `*_fraction`: the centre as a fraction of W, and the spacing widened to
                a (acs - W) / (acs a - W), so that the overall rate is W/a.
        accelerations: factors a, one is drawn for each mask.
        acs: numbers of centre columns (for `*_fraction`: fractions of W), one is drawn.
    """

    kind: MaskKind
    accelerations: tuple[int, ...]
    acs: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.kind not in get_args(MaskKind):
            raise ValueError(f"mask {self.kind!r} is none of {', '.join(get_args(MaskKind))}")
        if not self.accelerations or min(self.accelerations) < 1:
            raise ValueError(f"accelerations must be at least 1, got {self.accelerations}")
        if not self.acs or min(self.acs) <= 0:
            raise ValueError(f"a mask needs a positive number of centre lines, got {self.acs}")
        fraction = self.kind.endswith("_fraction")
        if fraction and max(self.acs) >= 1:
            raise ValueError(f"{self.kind} wants the centre as fractions below 1, got {self.acs}")
        if not fraction and any(acs != int(acs) for acs in self.acs):
            raise ValueError(f"{self.kind} wants whole numbers of centre lines, got {self.acs}")

    def check(self, width: int) -> None:
        """Make sure that every combination can be drawn for `width` columns.

        Raises:
            ValueError: one cannot, as in `draw`.
        """
        for acs in self.acs:
            for acceleration in self.accelerations:
                single = replace(self, acs=(acs,), accelerations=(acceleration,))
                single.draw(width, np.random.RandomState(0))

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
            offset: where the lines start (see `kind`); None: drawn below the acceleration.
            acquired: columns [left, right) outside which nothing was measured; None: all were.

        Raises:
            ValueError: more centre lines than the acceleration allows for this width.
        """
        acs = self.acs[rng.randint(0, len(self.acs))]
        acceleration = self.accelerations[rng.randint(0, len(self.accelerations))]
        acs_lines = round(width * acs) if self.kind.endswith("_fraction") else int(acs)
        if not 0 < acs_lines <= width:
            raise ValueError(f"{acs_lines} centre lines do not suit {width} columns")
        if offset is None and not self.kind.startswith("random"):
            offset = int(rng.randint(acceleration))
        if self.kind.startswith("random"):
            _check_rate(acs_lines * acceleration < width, width, acceleration, acs_lines)
            probability = (width / acceleration - acs_lines) / (width - acs_lines)
            columns = rng.uniform(size=width) < probability
        else:
            assert offset is not None  # drawn above
            columns = _LINES[self.kind](width, acceleration, offset, acs_lines)
        first = (width - acs_lines + 1) // 2
        columns[first : first + acs_lines] = True
        if acquired is not None:
            columns[: acquired[0]] = False
            columns[acquired[1] :] = False
        return Mask(columns=columns, acs_lines=acs_lines)


def _check_rate(possible: bool, width: int, acceleration: int, acs_lines: int) -> None:
    if not possible:
        raise ValueError(
            f"{acs_lines} centre lines of {width} columns alone are more than acceleration "
            f"{acceleration} measures: use fewer centre lines or a lower acceleration"
        )


def _magic_starts(offset: int) -> tuple[int, int]:
    """First sampled non-negative and first sampled negative frequency (counted from -1 down)."""
    return (1, 2) if offset % 2 == 0 else (3, 0)


def _from_halves(width: int, positive: NDArray[np.int_], negative: NDArray[np.int_]) -> BoolArray:
    """Centred mask from the sampled positions of the non-negative and the negative half.

    Position i of the negative half is frequency -(i + 1).
    """
    right, left = _halves(width)
    halves = [_sampled(right, positive), _sampled(left, negative)[::-1]]
    return np.fft.fftshift(np.concatenate(halves))


def _sampled(size: int, positions: NDArray[np.int_]) -> BoolArray:
    """Mask of `size` columns, those at the positions sampled."""
    columns = np.zeros(size, dtype=bool)
    columns[positions] = True
    return columns


def _halves(width: int) -> tuple[int, int]:
    return (width + 1) // 2, width - (width + 1) // 2


def _magic(width: int, acceleration: int, offset: int, _acs_lines: int) -> BoolArray:
    start_right, start_left = _magic_starts(offset)
    right, left = _halves(width)
    return _from_halves(
        width,
        np.arange(start_right, right, acceleration),
        np.arange(start_left, left, acceleration),
    )


def _magic_v2(width: int, acceleration: int, offset: int, acs_lines: int) -> BoolArray:
    return _magic(width, acceleration, offset % acceleration, acs_lines)


def _quadrature(width: int, acceleration: int, offset: int, _acs_lines: int) -> BoolArray:
    quarter = max(1, round(acceleration / 4))
    start = (quarter if offset % 2 == 0 else -quarter) % acceleration
    right, left = _halves(width)
    return _from_halves(
        width,
        np.arange(start, right, acceleration),
        # frequency start - a, counted from -1 down
        np.arange((acceleration - start - 1) % acceleration, left, acceleration),
    )


def _equispaced(width: int, acceleration: int, offset: int, _acs_lines: int) -> BoolArray:
    return _sampled(width, np.arange(offset, width, acceleration))


def _equispaced_v2(width: int, acceleration: int, offset: int, acs_lines: int) -> BoolArray:
    return _equispaced(width, acceleration, offset % acceleration, acs_lines)


def _spacing(width: int, acceleration: int, acs_lines: int) -> float:
    """Distance of lines at which centre and lines together are W/a columns."""
    _check_rate(acs_lines * acceleration < width, width, acceleration, acs_lines)
    return acceleration * (acs_lines - width) / (acs_lines * acceleration - width)


def _spaced(start: int, size: int, spacing: float) -> NDArray[np.int_]:
    return np.around(np.arange(start, size - 1, spacing)).astype(int)


def _equispaced_fraction(width: int, acceleration: int, offset: int, acs_lines: int) -> BoolArray:
    spacing = _spacing(width, acceleration, acs_lines)
    return _sampled(width, _spaced(offset, width, spacing))


def _magic_fraction(width: int, acceleration: int, offset: int, acs_lines: int) -> BoolArray:
    spacing = _spacing(width, acceleration, acs_lines)
    start_right, start_left = _magic_starts(offset)
    right, left = _halves(width)
    return _from_halves(
        width, _spaced(start_right, right, spacing), _spaced(start_left, left, spacing)
    )


_LINES: dict[str, Callable[[int, int, int, int], BoolArray]] = {
    "magic": _magic,
    "magic_v2": _magic_v2,
    "quadrature": _quadrature,
    "equispaced": _equispaced,
    "equispaced_v2": _equispaced_v2,
    "equispaced_fraction": _equispaced_fraction,
    "magic_fraction": _magic_fraction,
}


def seeded_by_name(name: str) -> np.random.RandomState:
    """The generator of a volume's own mask, the same in every run: seeded by the file name."""
    return np.random.RandomState(tuple(map(ord, name)))


def seeded_by_draw(seed: int, epoch: int, name: str, slice_index: int) -> np.random.RandomState:
    """The generator of one training example in one epoch; nothing else enters its draws."""
    sequence = np.random.SeedSequence([seed, epoch, slice_index, *name.encode()])
    return np.random.RandomState(sequence.generate_state(4))
