"""Volumes of many scanners, protocols and anatomies, for training data that vary.

A network that has been trained on volumes that are all alike removes the same amount of banding
from any image, too little from some and too much from others (docs/results.md).
"""

from dataclasses import replace

import numpy as np

from banding_removal.data.phantom.shapes import uniform
from banding_removal.data.phantom.spec import Anatomy, PhantomSpec


def varied(spec: PhantomSpec, seed: int, anatomy: Anatomy) -> PhantomSpec:
    """The specification of one volume: every property is drawn at random around that of `spec`.

    Field of view 0.7 to 1.25 times; coils half to twice as many, with radii of 30 to 70 mm; noise
    half to twice as strong; up to 4 % of the columns not acquired on either side; the brightness of
    every tissue differs by a factor of exp(0.4 N(0, 1)). The matrix is the same: with a matrix that
    varies from 3/4 to 4/3, the demo's small network lost 0.016 SSIM on the usual one.

    Args:
        spec: the middle of the ranges.
        seed: of the volume; not negative.
        anatomy: of the volume.
    """
    rng = np.random.default_rng([seed, 1])  # apart from the streams of `make_volume`
    width = spec.kspace_size[1]
    margin = round(0.04 * width)
    radius = uniform(rng, 30, 70)
    low, high = spec.noise
    return replace(
        spec,
        coils=int(rng.integers(max(1, spec.coils // 2), 2 * spec.coils + 1)),
        acquired=(int(rng.integers(0, margin + 1)), width - int(rng.integers(0, margin + 1))),
        noise=(low / 2, 2 * high),
        fov_mm=uniform(rng, 0.7, 1.25) * spec.fov_mm,
        coil_radius_mm=(radius / 1.1, 1.1 * radius),
        signal_spread=0.4,
        anatomy=anatomy,
    )
