"""Random anatomy: a body filled with ellipsoids of random size, place and brightness.

Opaque shapes that hide each other, with sizes over a wide range, are the "dead leaves" model of
Lee, Mumford and Huang (International Journal of Computer Vision 41, 2001): its edges are as those
of natural images. In training data beside the knees, it keeps a network from learning which tissue
of a knee is dark.
"""

from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from banding_removal.data.phantom.shapes import (
    FloatArray,
    Grid,
    Point,
    SmoothField,
    Triple,
    cover,
    ellipsoid_depth,
    log_uniform,
    uniform,
)
from banding_removal.data.phantom.tissues import Texture, draw_fields

NUMBER = (25, 90)  # of leaves
SIZE_MM = (2.5, 32.0)  # radius, log-uniform
BRIGHTNESS = (0.03, 1.0)  # many dark leaves: a uniform number is squared


class Leaf(NamedTuple):
    """An opaque ellipsoid; lengths in mm."""

    centre: Triple
    radii: Triple
    angle: float  # in the plane of a slice, radians
    brightness: float
    texture: str  # a field of `Texture`
    contrast: float  # of the texture, relative to the brightness


class Leaves(NamedTuple):
    """A body, an ellipsoid around the origin, and its leaves; a later leaf hides an earlier one."""

    radii: Triple
    ground: float  # brightness where there is no leaf
    leaves: tuple[Leaf, ...]
    fields: list[SmoothField]

    @classmethod
    def draw(cls, rng: Generator) -> "Leaves":
        """A random body that fits between the outer slices."""
        radii = (uniform(rng, 35, 75), uniform(rng, 40, 78), 50.0)
        leaves = tuple(_draw_leaf(rng, radii) for _ in range(int(rng.integers(*NUMBER))))
        return cls(radii, uniform(rng, 0.1, 0.8), leaves, draw_fields(rng))

    def render(self, grid: Grid, z: float) -> FloatArray:
        """One slice of the body: float32 (H, W), >= 0, at most about 1."""
        t = Texture(*(field.at(grid, z) for field in self.fields))
        x = grid.x + 3.0 * t.bend_x + 0.6 * t.ripple_x
        y = grid.y + 3.0 * t.bend_y + 0.6 * t.ripple_y
        p = Point(x, y, np.full_like(x, z))
        edge_mm = max(0.8, 1.1 * grid.pixel_mm)
        image = self.ground * (1 + 0.05 * t.grain + 0.05 * t.drift)
        for leaf in self.leaves:
            share = cover(_depth(p, leaf), edge_mm)
            value = leaf.brightness * (1 + leaf.contrast * getattr(t, leaf.texture))
            image += share * (value - image)
        image *= cover(ellipsoid_depth(p, (0, 0, 0), self.radii), edge_mm)
        return np.maximum(image, 0).astype(np.float32)


def _draw_leaf(rng: Generator, body: Triple) -> Leaf:
    direction = rng.standard_normal(3)
    # uniform in the body
    place = direction / np.linalg.norm(direction) * rng.random() ** (1 / 3) * body
    size = log_uniform(rng, *SIZE_MM)
    dark, bright = BRIGHTNESS
    return Leaf(
        centre=(float(place[0]), float(place[1]), float(place[2])),
        radii=(
            size * log_uniform(rng, 0.5, 2),
            size * log_uniform(rng, 0.5, 2),
            size * log_uniform(rng, 0.7, 3),
        ),
        angle=uniform(rng, 0, np.pi),
        brightness=float(dark + (bright - dark) * rng.random() ** 2),
        texture=str(rng.choice(["drift", "lobule", "patch", "grain", "fine"])),
        contrast=uniform(rng, 0, 0.15),
    )


def _depth(p: Point, leaf: Leaf) -> FloatArray:
    """Depth in a leaf, mm."""
    cos, sin = float(np.cos(leaf.angle)), float(np.sin(leaf.angle))
    x, y, z = (axis - c for axis, c in zip(p, leaf.centre, strict=True))
    return ellipsoid_depth(Point(cos * x + sin * y, cos * y - sin * x, z), (0, 0, 0), leaf.radii)
