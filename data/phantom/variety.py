"""Volumes of many scanners, protocols and anatomies, for training data that vary.

A network that has been trained on volumes that are all alike removes the same amount of banding
from any image, too little from some and too much from others (docs/results.md).
"""

from dataclasses import replace

import numpy as np

from banding_removal.data.phantom.shapes import uniform
from banding_removal.data.phantom.spec import Anatomy, PhantomSpec

OBLONG_SHARE = 0.25  # of the volumes: readout is oversampled, and phase encode up to 1/6 longer


def varied(spec: PhantomSpec, seed: int, anatomy: Anatomy) -> PhantomSpec:
    """The specification of one volume: every property is drawn at random around that of `spec`.

    The matrix is 3/4 to 4/3 of it; field of view 0.7 to 1.25 times; coils half to twice as many,
    with radii of 30 to 70 mm; noise half to twice as strong; the brightness of every tissue
    differs by a factor of exp(0.4 N(0, 1)).

    Args:
        spec: the middle of the ranges.
        seed: of the volume; not negative.
        anatomy: of the volume.
    """
    rng = np.random.default_rng([seed, 1])  # apart from the streams of `make_volume`
    scale = float(np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3))))
    h, w = (2 * round(scale * size / 2) for size in spec.target_size)
    height, width = (2 * round(scale * size / 2) for size in spec.kspace_size)
    if rng.random() < OBLONG_SHARE:
        height, width = 3 * height // 2, width + 2 * int(rng.integers(0, width // 12 + 1))
    margin = round(0.04 * width)
    radius = uniform(rng, 30, 70)
    low, high = spec.noise
    return replace(
        spec,
        kspace_size=(height, width),
        target_size=(h, w),
        coils=int(rng.integers(max(1, spec.coils // 2), 2 * spec.coils + 1)),
        acquired=(int(rng.integers(0, margin + 1)), width - int(rng.integers(0, margin + 1))),
        noise=(low / 2, 2 * high),
        fov_mm=uniform(rng, 0.7, 1.25) * spec.fov_mm,
        coil_radius_mm=(radius / 1.1, 1.1 * radius),
        signal_spread=0.4,
        anatomy=anatomy,
    )
