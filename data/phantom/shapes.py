"""Smooth random fields and implicit shapes, sampled at the pixels of a slice.

Lengths are in mm. x is left-right (phase encode, image columns), y head-foot (readout, image rows,
downwards), z front-back (slices). A depth is positive inside a shape, negative outside, and
roughly the distance to the shape's surface.
"""

from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

# float32 at run time; for NumPy's stubs, a float32 array times a Python float is float64
FloatArray = NDArray[np.floating]
Extent = float | FloatArray
Triple = tuple[float, float, float]

SLICE_RANGE_MM = 55.0  # first and last slice lie at -/+ this z, just outside every leg
FIELD_RANGE_MM = 110.0  # x and y range of the random fields, which covers the whole leg


def uniform(rng: Generator, low: float, high: float) -> float:
    """A uniform draw, as a Python float: a NumPy one would turn float32 arrays into float64."""
    return float(rng.uniform(low, high))


def normal(rng: Generator, sigma: float) -> float:
    """A draw from N(0, sigma^2), clipped at 2 sigma so that every shape stays in place."""
    return float(np.clip(sigma * rng.standard_normal(), -2 * sigma, 2 * sigma))


def log_uniform(rng: Generator, low: float, high: float) -> float:
    """A draw whose logarithm is uniform between those of the two limits."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


class Grid(NamedTuple):
    """Pixel centres in mm, zero at the FFT's centre pixel."""

    x: FloatArray  # (1, W)
    y: FloatArray  # (H, 1)
    pixel_mm: float

    @classmethod
    def of(cls, size: tuple[int, int], pixel_mm: float) -> "Grid":
        """The grid of a matrix (H, W)."""
        y, x = ((np.arange(n, dtype=np.float32) - n // 2) * pixel_mm for n in size)
        return cls(x[None, :], y[:, None], pixel_mm)


def spline_weights(position: FloatArray, knots: int, spacing: float) -> FloatArray:
    """Cubic B-spline weights B(position / spacing - knot): (n,) -> (n, knots).

    The number of knots is odd, the middle one lies at 0; position and spacing in mm.
    """
    knot = np.arange(knots, dtype=np.float32) - knots // 2
    t = np.abs(position[:, None] / spacing - knot)
    return np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.maximum(2 - t, 0) ** 3 / 6)


class SmoothField(NamedTuple):
    """Random field f(x, y, z) of zero mean and unit variance: a cubic spline with white weights.

    It is a function of mm, the same on any grid. The axes are separable, so that a slice takes two
    small matrix products; x and y are treated alike, so that neither is preferred.
    """

    weights: FloatArray  # float32 (knots z, knots y, knots x)
    spacing: float  # distance of two knots in x and y, mm
    spacing_z: float

    @classmethod
    def draw(cls, rng: Generator, spacing: float, spacing_z: float) -> "SmoothField":
        """White weights on a lattice that covers the leg."""
        in_plane = 2 * int(np.ceil(FIELD_RANGE_MM / spacing)) + 5
        through = 2 * int(np.ceil(SLICE_RANGE_MM / spacing_z)) + 5
        # integral of B^2 is 151 / 315 per axis: the mean variance of the spline
        deviation = (151 / 315) ** 1.5
        weights = rng.standard_normal((through, in_plane, in_plane), dtype=np.float32)
        return cls(weights / deviation, spacing, spacing_z)

    def at(self, grid: Grid, z: float) -> FloatArray:
        """The field on one slice, float32 (H, W)."""
        through, in_plane, _ = self.weights.shape
        at_z = spline_weights(np.array([z], dtype=np.float32), through, self.spacing_z)[0]
        plane = np.tensordot(at_z, self.weights, axes=1)  # (knots y, knots x)
        rows = spline_weights(grid.y[:, 0], in_plane, self.spacing)
        columns = spline_weights(grid.x[0, :], in_plane, self.spacing)
        return np.asarray(rows @ plane @ columns.T)


class Point(NamedTuple):
    """Positions of the pixels of one slice in the shapes' coordinates, mm, each (H, W)."""

    x: FloatArray
    y: FloatArray
    z: FloatArray


class Capsule(NamedTuple):
    """A straight tube with round ends."""

    start: Triple
    end: Triple
    radius: float


def ellipsoid_depth(p: Point, centre: Triple, radii: tuple[Extent, Extent, Extent]) -> FloatArray:
    """Depth in an ellipsoid: q (1 - q) / |(p - c) / r^2| with q = |(p - c) / r|.

    Exact to first order at the surface. An infinite radius gives a column, an array as radius a
    column of varying width.
    """
    u = [(axis - c) / r for axis, c, r in zip(p, centre, radii, strict=True)]
    q = np.sqrt(u[0] ** 2 + u[1] ** 2 + u[2] ** 2)
    v = [scaled / r for scaled, r in zip(u, radii, strict=True)]
    slope = np.sqrt(v[0] ** 2 + v[1] ** 2 + v[2] ** 2)
    # 0 / 0 at the centre, where any large depth will do
    return np.asarray(q * (1 - q) / np.maximum(slope, 1e-6))


def capsule_depth(p: Point, capsule: Capsule) -> FloatArray:
    """Depth in a tube: radius minus the distance to the segment from start to end."""
    x, y, z = (axis - s for axis, s in zip(p, capsule.start, strict=True))
    ax, ay, az = (e - s for s, e in zip(capsule.start, capsule.end, strict=True))
    t = np.clip((x * ax + y * ay + z * az) / (ax * ax + ay * ay + az * az), 0, 1)
    distance = np.sqrt((x - t * ax) ** 2 + (y - t * ay) ** 2 + (z - t * az) ** 2)
    return np.asarray(capsule.radius - distance)


def smooth_union(a: FloatArray, b: FloatArray, blend_mm: float) -> FloatArray:
    """max(a, b), rounded where the two differ by less than `blend_mm`."""
    overlap = np.maximum(blend_mm - np.abs(a - b), 0)
    return np.maximum(a, b) + overlap**2 / (4 * blend_mm)


def smooth_intersection(a: FloatArray, b: FloatArray, blend_mm: float) -> FloatArray:
    """min(a, b), rounded where the two differ by less than `blend_mm`."""
    return -smooth_union(-a, -b, blend_mm)


def cover(depth: FloatArray, edge_mm: float) -> FloatArray:
    """Share of the pixel inside a shape: clip(1/2 + depth / edge, 0, 1), the partial volume."""
    return np.clip(0.5 + depth / edge_mm, 0, 1)
