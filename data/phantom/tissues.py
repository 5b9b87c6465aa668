"""The tissues of the phantom knee: their brightness and texture, painted slice by slice."""

from typing import Literal, NamedTuple

import numpy as np
from numpy.random import Generator

from banding_removal.data.phantom.knee import Bones, Knee, bone_depths, knee_coordinates, leg_depth
from banding_removal.data.phantom.shapes import (
    Capsule,
    Extent,
    FloatArray,
    Grid,
    Point,
    SmoothField,
    capsule_depth,
    cover,
    ellipsoid_depth,
    normal,
    smooth_intersection,
    smooth_union,
)

# PD: fat and marrow are bright; PDFS: fat is suppressed, fluid is brightest
Contrast = Literal["PD", "PDFS"]

RECEIVE_BAND_MM = (80.0, 92.0)  # |y| between which the receive filter falls from 1 to 0


class Signals(NamedTuple):
    """Brightness of the tissues in one volume."""

    skin: float
    fat: float
    muscle: float
    marrow: float
    cortex: float
    cartilage: float
    fluid: float
    meniscus: float
    ligament: float
    vessel: float
    oedema: float


# in the order of `Signals`
USUAL_SIGNALS: dict[Contrast, tuple[float, ...]] = {
    "PD": (0.50, 0.90, 0.45, 0.75, 0.05, 0.62, 0.75, 0.12, 0.10, 0.12, 0.55),
    "PDFS": (0.30, 0.20, 0.42, 0.16, 0.05, 0.80, 1.00, 0.10, 0.08, 0.75, 0.60),
}


def draw_signals(rng: Generator, contrast: Contrast, spread: float) -> Signals:
    """The usual brightness of every tissue, each times its own exp(spread N(0, 1))."""
    usual = USUAL_SIGNALS[contrast]
    return Signals(*(value * float(np.exp(normal(rng, spread))) for value in usual))


class Texture(NamedTuple):
    """The random fields on one slice, each (H, W)."""

    bend_x: FloatArray  # slow displacement of all shapes
    bend_y: FloatArray
    ripple_x: FloatArray  # irregular borders
    ripple_y: FloatArray
    drift: FloatArray  # slow changes of thickness and brightness
    lobule: FloatArray  # its zero crossings are the web of fat lobules and muscle bundles
    patch: FloatArray  # red and yellow marrow
    grain: FloatArray  # trabeculae, fibres
    fine: FloatArray  # texture of about a pixel's size


# distance of knots in x and y, and in z, mm; in the order of `Texture`
KNOTS_MM = (45, 40), (45, 40), (12, 15), (12, 15), (28, 25), (9, 12), (8, 10), (3.2, 7), (1.2, 6)


def draw_fields(rng: Generator) -> list[SmoothField]:
    """The fields of `Texture`: independent of each other, continuous across slices."""
    return [SmoothField.draw(rng, *spacing) for spacing in KNOTS_MM]


class Scene(NamedTuple):
    """One slice while it is painted."""

    image: FloatArray  # (H, W), changed in place
    p: Point
    texture: Texture
    signals: Signals
    edge_mm: float  # width over which a tissue border is blurred (partial volume)

    def cover(self, depth: FloatArray) -> FloatArray:
        """Share of each pixel inside a shape."""
        return cover(depth, self.edge_mm)

    def paint(self, share: FloatArray, value: Extent) -> None:
        """In place, image <- (1 - share) image + share value."""
        self.image[:] += share * (value - self.image)


def web(lobule: FloatArray, thickness: float) -> FloatArray:
    """exp(-(f / thickness)^2): 1 on the zero crossings of a field, a web of closed lines."""
    return np.exp(-((lobule / thickness) ** 2))


def muscle_bundles(knee: Knee, p: Point, waviness: FloatArray) -> FloatArray:
    """Stripes between -1 and 1 in a chevron: slanted one way on the left, the other on the right.

    The angles are around 45 degrees, so that on average the stripes prefer neither x nor y:
    anatomy must not look like banding. `waviness` is in radians.
    """
    wave_number = 2 * np.pi / knee.bundle_mm
    across_x = wave_number * float(np.cos(knee.pennation)) * p.x + waviness
    across_y = wave_number * float(np.sin(knee.pennation)) * p.y
    right = cover(p.x, 12)
    return right * np.sin(across_x + across_y) + (1 - right) * np.sin(across_x - across_y)


def paint_soft_tissue(scene: Scene, knee: Knee, leg: FloatArray) -> None:
    """Skin, fat with its lobules, muscle with bundles and septa, vessels."""
    p, t, s = scene.p, scene.texture, scene.signals
    inside = scene.cover(leg - 1.6)
    lobules = 1 + 0.05 * t.drift + 0.05 * t.grain + 0.03 * t.fine - 0.22 * web(t.lobule, 0.13)
    fat = s.fat * lobules
    scene.paint(scene.cover(leg), s.skin * (1 + 0.1 * t.grain))
    scene.paint(inside, fat)

    # near the joint the muscles thin out in favour of fat and connective tissue
    taper = 23 * np.exp(-(((p.y - 2) / 30) ** 2)) * (1 + 0.25 * t.drift)
    muscle = scene.cover(leg - knee.fat_mm * (1 + 0.25 * t.drift) - taper)
    bundles = muscle_bundles(knee, p, 1.1 * t.patch + 0.9 * t.lobule)
    texture = 1 + 0.08 * bundles + 0.06 * t.grain + 0.05 * t.fine + 0.06 * t.drift
    scene.paint(muscle, s.muscle * texture)
    scene.paint(0.3 * muscle * web(t.lobule + 0.4 * t.patch, 0.07), s.fat)
    for (nx, ny, nz), offset in knee.septa:
        distance = np.abs(nx * p.x + ny * p.y + nz * p.z - offset + 3.5 * t.drift)
        scene.paint(0.85 * muscle * scene.cover(0.75 - distance), fat)
    for vessel in knee.vessels:
        scene.paint(0.9 * inside * scene.cover(capsule_depth(p, vessel)), s.vessel)


def paint_joint_space(scene: Scene, knee: Knee, bones: Bones) -> None:
    """Fluid in the recesses and in the pouch above the patella, then the menisci in it."""
    p, t, s = scene.p, scene.texture, scene.signals
    articular = np.maximum(bones.femur, bones.tibia)
    around = articular + knee.effusion_mm * (1 + 0.3 * t.drift)
    recess = smooth_intersection(around, 19 - np.abs(p.y + 3), 8)
    pouch = ellipsoid_depth(p, (4, -47, -25), (17, 14, 1.5 + 5 * knee.pouch))
    fluid = s.fluid * (0.88 + 0.06 * t.patch + 0.05 * t.grain)
    scene.paint(scene.cover(smooth_union(recess, pouch, 4)), fluid)
    for x in (-20.5, 20.5):
        outer = ellipsoid_depth(p, (x, 0.5, 3), (18.5, 6, 23))
        inner = ellipsoid_depth(p, (x, 0.5, 3), (9.5, 9, 13))
        # C-shaped, open towards the middle of the joint
        meniscus = np.minimum(np.minimum(outer, -inner), np.abs(p.x) - 12)
        scene.paint(scene.cover(meniscus), s.meniscus * (1 + 0.25 * t.grain))


def paint_cartilage(scene: Scene, bones: Bones) -> None:
    """Layers on the surfaces of femur, tibia and patella that face a joint."""
    p, t, s = scene.p, scene.texture, scene.signals
    thickness = 2.5 + 0.3 * t.drift
    layers = (
        np.minimum(bones.femur + thickness, p.y + 25),
        np.minimum(np.minimum(bones.tibia + thickness, 7 - p.y), 34 - np.abs(p.x)),
        np.minimum(bones.patella + thickness, p.z + 34),
    )
    for layer in layers:
        scene.paint(scene.cover(layer), s.cartilage * (1 + 0.06 * t.grain + 0.05 * t.patch))


def paint_bones(scene: Scene, knee: Knee, bones: Bones) -> None:
    """Dark cortex, thicker along the shafts, around grainy marrow with bruises in it."""
    p, t, s = scene.p, scene.texture, scene.signals
    cortex_mm = 1.1 + 1.6 * np.clip((np.abs(p.y) - 28) / 30, 0, 1)
    marrow = s.marrow * (1 + 0.09 * t.fine + 0.09 * t.grain + 0.08 * t.patch + 0.05 * t.drift)
    for depth in bones:
        scene.paint(scene.cover(depth), s.cortex)
        inside = scene.cover(depth - cortex_mm)
        scene.paint(inside, marrow)
        for centre, radius in knee.oedema:
            bruise = ellipsoid_depth(p, centre, (radius, 1.2 * radius, radius))
            # a border of 9 mm: bruises fade into the marrow
            share = 0.8 * inside * cover(bruise + 2 * t.patch, 9)
            scene.paint(share, s.oedema * (1 + 0.1 * t.grain))


def paint_ligaments(scene: Scene, leg: FloatArray) -> None:
    """Collateral and cruciate ligaments, and the tendons above and below the patella."""
    p, t, s = scene.p, scene.texture, scene.signals
    bands = (
        ellipsoid_depth(p, (-39, 8, 3), (1.9, 36, 12)),
        capsule_depth(p, Capsule((37, -22, 8), (36, 18, 17), 2.3)),
        capsule_depth(p, Capsule((8, -19, 17), (-3, 2, -7), 3.6)),
        capsule_depth(p, Capsule((-7, -17, 0), (1, 8, 25), 4.2)),
        ellipsoid_depth(p, (2, -62, -34), (13, 30, 3.5)),
        ellipsoid_depth(p, (2, 22, -34), (11, 30, 3)),
    )
    for band in bands:
        share = scene.cover(np.minimum(band, leg - 2.5))
        scene.paint(share, s.ligament * (1 + 0.3 * t.grain))


def render_slice(
    knee: Knee, signals: Signals, fields: list[SmoothField], grid: Grid, z: float
) -> FloatArray:
    """The anatomy m(x, y, z) of one slice: float32 (H, W), >= 0, about 1 at the brightest."""
    t = Texture(*(field.at(grid, z) for field in fields))
    bent_x = grid.x + 3.0 * t.bend_x + 0.45 * t.ripple_x
    bent_y = grid.y + 3.0 * t.bend_y + 0.45 * t.ripple_y
    p = knee_coordinates(knee, grid, z, bent_x, bent_y)
    leg = leg_depth(knee, p)
    image = np.zeros_like(leg)
    if leg.max() < -2:  # the slice misses the leg
        return image
    bones = bone_depths(knee, p)
    scene = Scene(image, p, t, signals, edge_mm=max(0.8, 1.1 * grid.pixel_mm))
    paint_soft_tissue(scene, knee, leg)
    paint_joint_space(scene, knee, bones)
    paint_cartilage(scene, bones)
    paint_bones(scene, knee, bones)
    paint_ligaments(scene, leg)
    image *= 1 + 0.045 * t.fine
    start, end = RECEIVE_BAND_MM
    image *= np.clip((end - np.abs(grid.y)) / (end - start), 0, 1)
    return np.maximum(image, 0)
