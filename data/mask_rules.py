"""Where the lines of each kind of undersampling mask lie, of W columns and at acceleration a.

To add a kind: write its rule and enter it in `RULES`. The setting `mask` accepts the name from then
on, and tests/data/test_masks.py tests it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Request:
    """What a rule is given: it returns the sampled columns, bool (width,).

    The caller adds the centre, columns (W - acs + 1) // 2 onwards, and removes the columns that the
    scanner did not acquire.
    """

    width: int
    acceleration: int
    acs_lines: int
    fixed_offset: int | None  # None: it is drawn; kinds without a start ignore it
    rng: np.random.RandomState  # the only source of chance: a volume's mask is seeded by its name

    def offset(self) -> int:
        """The start of the lines: as given, else drawn below the acceleration; call it once."""
        if self.fixed_offset is not None:
            return self.fixed_offset
        return int(self.rng.randint(self.acceleration))

    @property
    def halves(self) -> tuple[int, int]:
        """How many of the columns are non-negative and how many are negative frequencies."""
        return (self.width + 1) // 2, self.width // 2

    @property
    def centre_suffices(self) -> bool:
        """Whether the centre alone is W / a columns or more: then nothing else is measured."""
        return self.acs_lines * self.acceleration >= self.width

    def spacing(self) -> float:
        """Distance of lines a (acs - W) / (acs a - W): with the centre they are W / a columns.

        The lines run over all W columns; those that fall into the centre do not count twice. The
        distance has no meaning where the centre suffices.
        """
        a, acs_lines, width = self.acceleration, self.acs_lines, self.width
        return a * (acs_lines - width) / (acs_lines * a - width)


def _equispaced(r: Request) -> BoolArray:
    """Columns offset::a."""
    return _sampled(r.width, np.arange(r.offset(), r.width, r.acceleration))


def _equispaced_v2(r: Request) -> BoolArray:
    """Columns (offset mod a)::a."""
    return _sampled(r.width, np.arange(r.offset() % r.acceleration, r.width, r.acceleration))


def _equispaced_fraction(r: Request) -> BoolArray:
    """Columns from the offset on, spaced so that the overall rate is W / a."""
    if r.centre_suffices:
        return _sampled(r.width, ())
    return _sampled(r.width, _spaced(r.offset(), r.width, r.spacing()))


def _fastmri_equispaced_fraction(r: Request) -> BoolArray:
    """`equispaced_fraction` as `EquispacedMaskFractionFunc` of the public `fastmri` package draws.

    The start is always drawn, below the rounded distance of lines.
    """
    if r.centre_suffices:
        return _sampled(r.width, ())
    start = int(r.rng.randint(round(r.spacing())))
    return _sampled(r.width, _spaced(start, r.width, r.spacing()))


def _random(r: Request) -> BoolArray:
    """Each column with probability (W / a - acs) / (W - acs): the expected rate is W / a."""
    if r.centre_suffices:
        return _sampled(r.width, ())
    probability = (r.width / r.acceleration - r.acs_lines) / (r.width - r.acs_lines)
    return r.rng.uniform(size=r.width) < probability


# Offset sampling (Defazio, "Offset Sampling Improves Deep Learning based Accelerated MRI
# Reconstructions by Exploiting Symmetry", arXiv 1912.01101): the conjugate mirror image of each
# line falls between lines.


def _magic(r: Request) -> BoolArray:
    """Offset sampling as published, whose starts suit a = 4."""
    return _magic_lines(r, r.offset())


def _magic_v2(r: Request) -> BoolArray:
    """`magic`, with the offset taken modulo a."""
    return _magic_lines(r, r.offset() % r.acceleration)


def _magic_lines(r: Request, offset: int) -> BoolArray:
    positive, negative = (
        np.arange(start, size, r.acceleration)
        for start, size in zip(_magic_starts(offset), r.halves, strict=True)
    )
    return _from_halves(r, positive, negative)


def _magic_fraction(r: Request) -> BoolArray:
    """`magic`, spaced so that the overall rate is W / a."""
    if r.centre_suffices:
        return _sampled(r.width, ())
    positive, negative = (
        _spaced(start, size, r.spacing())
        for start, size in zip(_magic_starts(r.offset()), r.halves, strict=True)
    )
    return _from_halves(r, positive, negative)


def _quadrature(r: Request) -> BoolArray:
    """Offset sampling for any a: frequencies p + a j, p = a/4 or, for an odd offset, -a/4."""
    quarter = max(1, round(r.acceleration / 4))
    start = (quarter if r.offset() % 2 == 0 else -quarter) % r.acceleration
    right, left = r.halves
    # the first negative frequency is start - a, counted from -1 down
    first_negative = (r.acceleration - start - 1) % r.acceleration
    return _from_halves(
        r,
        np.arange(start, right, r.acceleration),
        np.arange(first_negative, left, r.acceleration),
    )


# Kinds whose names end in `_fraction` take the centre as a fraction of W (acs_fractions), the
# others as a number of columns (acs_lines). Those that begin with `fastmri_` are drawn as the masks
# of the public `fastmri` package: the first fraction goes with the first acceleration, and so on.
RULES: dict[str, Callable[[Request], BoolArray]] = {
    "magic": _magic,
    "magic_v2": _magic_v2,
    "quadrature": _quadrature,
    "equispaced": _equispaced,
    "equispaced_v2": _equispaced_v2,
    "random": _random,
    "magic_fraction": _magic_fraction,
    "equispaced_fraction": _equispaced_fraction,
    "random_fraction": _random,
    "fastmri_equispaced_fraction": _fastmri_equispaced_fraction,
    "fastmri_random_fraction": _random,
}
# Kinds that measure W / a columns, centre included.
WITH_CENTRE_IN_RATE = (
    *("random", "random_fraction", "equispaced_fraction", "magic_fraction"),
    *("fastmri_equispaced_fraction", "fastmri_random_fraction"),
)
if TYPE_CHECKING:
    MaskKind = str
else:
    MaskKind = Literal[*RULES]  # the values that the setting accepts


def _magic_starts(offset: int) -> tuple[int, int]:
    """First sampled non-negative and first sampled negative frequency (counted from -1 down)."""
    return (1, 2) if offset % 2 == 0 else (3, 0)


def _spaced(start: int, size: int, spacing: float) -> NDArray[np.int_]:
    return np.around(np.arange(start, size - 1, spacing)).astype(int)


def _from_halves(r: Request, positive: NDArray[np.int_], negative: NDArray[np.int_]) -> BoolArray:
    """Centred mask from sampled positions in the non-negative and in the negative half.

    Position i of the negative half is frequency -(i + 1).
    """
    right, left = r.halves
    halves = [_sampled(right, positive), _sampled(left, negative)[::-1]]
    return np.fft.fftshift(np.concatenate(halves))


def _sampled(size: int, positions: NDArray[np.int_] | tuple[()]) -> BoolArray:
    columns = np.zeros(size, dtype=bool)
    columns[np.asarray(positions, dtype=int)] = True
    return columns
