"""What a phantom volume looks like: sizes, noise, contrast."""

from dataclasses import dataclass, replace

TARGET_FOV_MM = 160.0  # along the longer side of the target, as in most fastMRI knees


@dataclass(frozen=True, kw_only=True)
class PhantomSpec:
    """What one phantom volume looks like; ready made are `DEMO`, `MEDIUM` and `REAL_SIZE`.

    Raises:
        ValueError: a field is out of its range, or two fields contradict each other.
    """

    kspace_size: tuple[int, int]  # k-space matrix (readout H, phase encode W)
    target_size: tuple[int, int]  # centre crop (h, w); longer side 160 mm, square pixels
    coils: int
    acquired: tuple[int, int]  # phase-encode columns [left, right) that are measured; else zero
    slices: int  # equally spaced; the first and the last hold no anatomy
    # range (log-uniform) of the noise's standard deviation per coil and pixel in PDFS volumes,
    # as a fraction of the volume's clean 99.5th percentile; PD volumes get half of it
    noise: tuple[float, float]
    fat_suppressed_share: float  # probability that a volume is fat-suppressed

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
            raise ValueError(f"fat_suppressed_share is a share, not {self.fat_suppressed_share}")

    @property
    def pixel_mm(self) -> float:
        """Side of a pixel in mm."""
        return TARGET_FOV_MM / max(self.target_size)

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
