"""What a phantom volume looks like: sizes, coils, noise, contrast."""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

# A knee, or a body filled with random shapes (`data.phantom.leaves`).
Anatomy = Literal["knee", "leaves"]

# Below, hardly any border of a tissue is in view; above, the knee is so small that the percentile
# by which a volume is scaled may be 0.
FOV_RANGE_MM = (40.0, 640.0)
MAX_SIGNAL_SPREAD = 1.0  # brightness between 1/7 and 7 times the usual one


@dataclass(frozen=True, kw_only=True)
class PhantomSpec:
    """What one phantom volume looks like; `DEMO`, `MEDIUM` and `REAL_SIZE` are ready to use.

    Raises:
        ValueError: a field is out of its range, or two fields contradict each other.
    """

    kspace_size: tuple[int, int]  # k-space matrix (readout H, phase encode W)
    target_size: tuple[int, int]  # centre crop (h, w); square pixels
    coils: int
    acquired: tuple[int, int]  # measured phase-encode columns [left, right); the rest is zero
    slices: int  # equally spaced; the first and the last hold no anatomy
    # range (log-uniform) of the noise's standard deviation per coil and pixel in PDFS volumes,
    # as a fraction of the volume's 99.5th percentile without noise; PD volumes get half of it
    noise: tuple[float, float]
    fat_suppressed_share: float  # probability that a volume is fat-suppressed
    # along the longer side of the target, as in most fastMRI knees; smaller: a larger knee
    fov_mm: float = 160.0
    coil_radius_mm: tuple[float, float] = (54.0, 66.0)  # range (uniform) of the loops' radii
    signal_spread: float = 0.12  # standard deviation of the logarithm of a tissue's brightness
    anatomy: Anatomy = "knee"

    def __post_init__(self) -> None:
        (height, width), (h, w) = self.kspace_size, self.target_size
        left, right = self.acquired
        low, high = self.noise
        if not (1 <= h <= height and 1 <= w <= width):
            raise ValueError(f"target_size {h} x {w} must fit into kspace_size {height} x {width}")
        if self.coils < 1:
            raise ValueError(f"coils must be at least 1, not {self.coils}")
        if not 0 <= left <= width // 2 < right <= width:
            raise ValueError(
                f"acquired must be [left, right) within the {width} columns and hold the centre "
                f"column {width // 2}, not [{left}, {right})"
            )
        if self.slices < 3:
            raise ValueError(f"slices must be at least 3 (two are empty), not {self.slices}")
        if not 0 < low <= high:
            raise ValueError(f"noise must be a range 0 < low <= high, not ({low}, {high})")
        if not 0 <= self.fat_suppressed_share <= 1:
            raise ValueError(
                f"fat_suppressed_share must be in [0, 1], not {self.fat_suppressed_share}"
            )
        low, high = FOV_RANGE_MM
        if not low <= self.fov_mm <= high:
            raise ValueError(f"fov_mm must be in [{low:g}, {high:g}], not {self.fov_mm}")
        low, high = self.coil_radius_mm
        if not 0 < low <= high < math.inf:
            raise ValueError(f"coil_radius_mm must be a range 0 < low <= high, not ({low}, {high})")
        if not 0 <= self.signal_spread <= MAX_SIGNAL_SPREAD:
            raise ValueError(
                f"signal_spread must be in [0, {MAX_SIGNAL_SPREAD:g}], not {self.signal_spread}"
            )

        if self.anatomy not in get_args(Anatomy):
            raise ValueError(f"anatomy {self.anatomy!r}: none of {', '.join(get_args(Anatomy))}")

    @property
    def pixel_mm(self) -> float:
        """Side of a pixel in mm."""
        return self.fov_mm / max(self.target_size)

    @property
    def volume_bytes(self) -> int:
        """Size of one volume's k-space (complex64) and target (float32), in bytes."""
        (height, width), (h, w) = self.kspace_size, self.target_size
        return self.slices * (8 * self.coils * height * width + 4 * h * w)


DEMO = PhantomSpec(
    kspace_size=(96, 96),
    target_size=(96, 96),
    coils=6,
    acquired=(2, 94),
    slices=12,
    noise=(0.04, 0.09),
    fat_suppressed_share=0.7,
)

MEDIUM = replace(DEMO, kspace_size=(128, 128), target_size=(128, 128), acquired=(3, 125))

REAL_SIZE = PhantomSpec(
    kspace_size=(640, 368),  # twofold readout oversampling: 320 x 184 mm
    target_size=(320, 320),
    coils=15,
    acquired=(18, 350),
    slices=18,
    noise=(0.015, 0.04),
    fat_suppressed_share=0.7,
)
