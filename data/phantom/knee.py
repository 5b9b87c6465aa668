"""The shape of a random knee: its pose, its bones, and everything else that varies between legs.

The origin lies between femur and tibia; axes and depths are those of `data.phantom.shapes`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from banding_removal.data.phantom.shapes import (
    Capsule,
    FloatArray,
    Grid,
    Point,
    Triple,
    capsule_depth,
    ellipsoid_depth,
    log_uniform,
    normal,
    smooth_intersection,
    smooth_union,
    uniform,
)


class Sheet(NamedTuple):
    """The plane normal . p = offset, mm."""

    normal: Triple
    offset: float


@dataclass(frozen=True, kw_only=True)
class Knee:
    """The random shape of one knee; lengths in mm, angles in radians."""

    angle: float  # in the plane of a slice
    tilt_x: float  # obliqueness of the slices
    tilt_y: float
    shift_x: float
    shift_y: float
    scale: float
    side: int  # left -1, right +1
    leg_half_width: float  # at the joint
    fat_mm: float  # thickness of the fat under the skin
    condyle_scale: float  # size of the bones relative to the usual size, at the joint
    shaft_scale: float  # the same along the shaft
    effusion_mm: float  # width of the fluid-filled recesses
    pouch: float  # fullness of the pouch above the patella, 0 to 1
    pennation: float  # angle of the muscle fibres to the leg's axis
    bundle_mm: float  # distance of muscle bundles
    septa: tuple[Sheet, ...]
    vessels: tuple[Capsule, ...]
    oedema: tuple[tuple[Triple, float], ...]  # centre and radius of bruised marrow

    @classmethod
    def draw(cls, rng: Generator) -> "Knee":
        """A random knee; every leg fits between the outer slices (see `SLICE_RANGE_MM`)."""
        return cls(
            angle=normal(rng, 0.09),
            tilt_x=normal(rng, 0.015),
            tilt_y=normal(rng, 0.015),
            shift_x=normal(rng, 4),
            shift_y=normal(rng, 7),
            scale=uniform(rng, 0.94, 1.03),
            side=1 if rng.random() < 0.5 else -1,
            leg_half_width=uniform(rng, 52, 62),
            fat_mm=uniform(rng, 4, 11),
            condyle_scale=uniform(rng, 0.93, 1.05),
            shaft_scale=uniform(rng, 0.85, 1.25),
            effusion_mm=uniform(rng, 1, 3.5),
            pouch=uniform(rng, 0, 1),
            pennation=uniform(rng, 0.45, 1.12),
            bundle_mm=uniform(rng, 5, 9),
            septa=draw_septa(rng),
            vessels=draw_vessels(rng),
            oedema=draw_oedema(rng),
        )


def draw_septa(rng: Generator) -> tuple[Sheet, ...]:
    """Fat sheets between muscles, roughly along the leg."""
    sheets = []
    for _ in range(int(rng.integers(4, 8))):
        direction = np.array([rng.normal(), 0.45 * rng.normal(), rng.normal()])
        nx, ny, nz = (direction / np.linalg.norm(direction)).tolist()
        sheets.append(Sheet((nx, ny, nz), uniform(rng, -45, 45)))
    return tuple(sheets)


def draw_vessels(rng: Generator) -> tuple[Capsule, ...]:
    """The popliteal artery and vein behind the joint, and small vessels in any direction."""
    x, z = normal(rng, 3), uniform(rng, 29, 34)
    vessels = [
        Capsule((x, -110, z), (x + normal(rng, 4), 110, z - 3), uniform(rng, 2.4, 3.4)),
        Capsule((x + 8, -110, z + 3), (x + 6 + normal(rng, 4), 110, z), uniform(rng, 2.6, 3.8)),
    ]
    for _ in range(int(rng.integers(18, 34))):
        start = np.array([uniform(rng, -58, 58), uniform(rng, -85, 85), uniform(rng, -45, 45)])
        direction = rng.standard_normal(3) * (1.0, 1.3, 0.8)
        end = start + uniform(rng, 12, 45) * direction / np.linalg.norm(direction)
        radius = log_uniform(rng, 0.7, 1.9)
        vessels.append(Capsule(tuple(start.tolist()), tuple(end.tolist()), radius))
    return tuple(vessels)


def draw_oedema(rng: Generator) -> tuple[tuple[Triple, float], ...]:
    """Occasional bruises of the marrow, in the femur (y < 0) and in the tibia (y > 0)."""
    bruises = []
    for direction in (-1, 1):
        if rng.random() < 0.4:
            x, y, z = uniform(rng, -26, 26), uniform(rng, 8, 26), uniform(rng, -14, 20)
            bruises.append(((x, direction * y, z), uniform(rng, 6, 12)))
    return tuple(bruises)


def knee_coordinates(
    knee: Knee, grid: Grid, z: float, bent_x: FloatArray, bent_y: FloatArray
) -> Point:
    """Scanner coordinates (x, y already bent) -> the knee's: shift, turn, tilt, scale, mirror."""
    x, y = bent_x - knee.shift_x, bent_y - knee.shift_y
    cos, sin = float(np.cos(knee.angle)), float(np.sin(knee.angle))
    tilted_z = z + knee.tilt_x * grid.x + knee.tilt_y * grid.y
    return Point(
        x=knee.side * (cos * x + sin * y) / knee.scale,
        y=(cos * y - sin * x) / knee.scale,
        z=tilted_z / knee.scale,
    )


class Bones(NamedTuple):
    """Depth in each bone, mm, (H, W)."""

    femur: FloatArray
    tibia: FloatArray
    fibula: FloatArray
    patella: FloatArray


def bone_depths(knee: Knee, p: Point) -> Bones:
    """Depth in each of the four bones."""
    neck = 5.5 + 4 * np.exp(-(((p.y - 20) / 9) ** 2))
    fibula = ellipsoid_depth(p, (35, 0, 17), (neck, np.inf, neck))
    return Bones(
        femur=femur_depth(knee, p),
        tibia=tibia_depth(knee, p),
        fibula=smooth_intersection(fibula, p.y - 13, 4),
        patella=ellipsoid_depth(p, (2, -17, -33.5), (20.5 * knee.condyle_scale, 19.5, 9)),
    )


def leg_depth(knee: Knee, p: Point) -> FloatArray:
    """Depth in the leg: an elliptic column, wider at the thigh, waisted below the joint."""
    profile = 1 - 0.09 * np.tanh(p.y / 45) - 0.05 * np.exp(-(((p.y - 22) / 26) ** 2))
    half_depth = 47 * (1 - 0.04 * np.tanh(p.y / 45))
    return ellipsoid_depth(p, (0, 0, 0), (knee.leg_half_width * profile, np.inf, half_depth))


def femur_depth(knee: Knee, p: Point) -> FloatArray:
    """Depth in the femur: a shaft that flares into two condyles, with the notch between them."""
    flare, shaft = np.exp(-(((p.y + 20) / 27) ** 2)), 13 * knee.shaft_scale
    half_x = shaft + (36 * knee.condyle_scale - shaft) * flare
    column = ellipsoid_depth(p, (0, 0, -3), (half_x, np.inf, shaft + 10 * flare))
    bone = np.minimum(column, -20 - p.y)
    for x, y_radius in ((-20.0, 18.5), (20.0, 17.5)):
        radii = (18.5 * knee.condyle_scale, y_radius, 27.0)
        condyle = ellipsoid_depth(p, (x, -3 - y_radius, 7), radii)
        bone = smooth_union(bone, condyle, 7)
    notch = capsule_depth(p, Capsule((0, -11, 6), (0, -16, 60), 9))
    return smooth_intersection(bone, -notch, 3)


def tibia_depth(knee: Knee, p: Point) -> FloatArray:
    """Depth in the tibia: a plateau with two spines on a narrowing shaft."""
    flare, shaft = np.exp(-(((p.y - 5) / 25) ** 2)), 13 * knee.shaft_scale
    half_x = shaft + (37 * knee.condyle_scale - shaft) * flare
    column = ellipsoid_depth(p, (0, 0, 2), (half_x, np.inf, shaft + 11 * flare))
    spines = np.exp(-(((np.abs(p.x) - 4.5) / 3) ** 2) - ((p.z - 4) / 12) ** 2)
    plateau = p.y - 3.5 + 6 * spines
    return smooth_intersection(column, plateau, 4)
