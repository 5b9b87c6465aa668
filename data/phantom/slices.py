"""A knee-like multi-coil k-space phantom in the fastMRI knee layout, made from a seed.

    volume = make_volume(DEMO, seed=0)

The signal model, for slice z, coil c and noise n of standard deviation sigma:

    k_c = A F ( S_c(x, y, z) exp(i phi(x, y, z)) m(x, y, z) + n_c ),    target = crop rss_c F^-1 k_c

with m the anatomy, phi the image phase, S the coil sensitivities, F the centred orthonormal FFT
and A the acquired columns. Anatomy, phase and sensitivities are functions of millimetres: any
matrix, square or not, samples the same knee. The noise is part of the target on purpose: a
predictor cannot know it, smooths where signal is low, and does so anisotropically (banding).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from banding_removal.data.operators import center_crop, rss, to_image, to_kspace
from banding_removal.data.phantom.knee import Knee
from banding_removal.data.phantom.shapes import (
    SLICE_RANGE_MM,
    FloatArray,
    Grid,
    SmoothField,
    log_uniform,
    normal,
)
from banding_removal.data.phantom.tissues import Contrast, draw_fields, draw_signals, render_slice

ComplexArray = NDArray[np.complex64]

TARGET_FOV_MM = 160.0  # along the longer side of the target, as in most fastMRI knees
PD_NOISE_SHARE = 0.5  # PD noise over PDFS noise: without fat suppression there is more signal
PERCENTILE = 99.5  # of the clean image: the unit of the noise range and of `SIGNAL_LEVEL`
SIGNAL_LEVEL = {"PD": (3e-4, 6e-4), "PDFS": (1.2e-4, 2.5e-4)}  # its value, as in fastMRI
SYSTEM_MODELS = ("Phantom_A", "Phantom_B")  # the invented scanners


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


@dataclass(frozen=True, kw_only=True)
class PhantomVolume:
    """One volume in memory, with what its file needs: the result of `make_volume(spec, seed)`."""

    spec: PhantomSpec
    seed: int
    contrast: Contrast
    kspace: ComplexArray  # (slice, coil, H, W), zero outside the acquired columns
    target: FloatArray  # float32 (slice, h, w): crop of rss of the inverse FFT of `kspace`
    noise_sigma: float  # E|n|^2 is its square, per coil and image pixel, in the unit of `kspace`
    system_model: str


class Receiver(NamedTuple):
    """Loops around the leg, and the phase of the image.

    Coil c has sensitivity (1 + |r - r_c|^2 / a_c^2)^(-3/2) exp(i (b_c + g_c . r)): the magnitude
    is that of a loop of radius a_c on its axis, the phase is smooth.
    """

    centre: FloatArray  # r_c, (coil, 3), mm
    radius: FloatArray  # a_c, (coil,), mm
    phase: FloatArray  # b_c, (coil,), radians
    gradient: FloatArray  # g_c, (coil, 3), radians per mm
    image_gradient: FloatArray  # of phi, (3,), radians per mm
    image_twist: float  # of phi, times x y, radians per mm^2
    image_field: SmoothField  # the rest of phi, in units of 0.3 radians

    @classmethod
    def draw(cls, rng: Generator, coils: int) -> "Receiver":
        """Loops on an elliptic cylinder, in two rings (up to 8 coils) or three, zigzag."""
        rings = 1 if coils == 1 else 2 if coils <= 8 else 3
        angle = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(coils) / coils
        angle += rng.normal(0, 0.1, coils)
        distance = rng.uniform(0.95, 1.15, coils)
        ring = np.arange(coils) % rings - (rings - 1) / 2
        along = ring * 110 / max(rings - 1, 1) + rng.normal(0, 6, coils)
        centre = np.stack(
            [88 * distance * np.cos(angle), along, 72 * distance * np.sin(angle)], axis=1
        )
        return cls(
            centre=centre.astype(np.float32),
            radius=rng.uniform(54, 66, coils).astype(np.float32),
            phase=rng.uniform(0, 2 * np.pi, coils).astype(np.float32),
            gradient=rng.normal(0, 0.015, (coils, 3)).astype(np.float32),
            image_gradient=rng.normal(0, 0.018, 3).astype(np.float32),
            image_twist=normal(rng, 1.2e-4),
            image_field=SmoothField.draw(rng, 50, 50),
        )

    def sens_maps(self, grid: Grid, z: float) -> ComplexArray:
        """S on one slice, complex64 (coil, H, W)."""
        x0, y0, z0 = (self.centre[:, i, None, None] for i in range(3))
        distance2 = (grid.x - x0) ** 2 + (grid.y - y0) ** 2 + (z - z0) ** 2
        ratio = 1 / (1 + distance2 / self.radius[:, None, None] ** 2)
        gx, gy, gz = (self.gradient[:, i, None, None] for i in range(3))
        # the phase is linear, so its exponential is an outer product
        rows = np.exp(1j * (gy * grid.y + gz * z + self.phase[:, None, None]))  # (coil, H, 1)
        columns = np.exp(1j * gx * grid.x)  # (coil, 1, W)
        return np.asarray(ratio * np.sqrt(ratio) * rows * columns, dtype=np.complex64)

    def image_phase(self, grid: Grid, z: float) -> ComplexArray:
        """exp(i phi) on one slice, complex64 (H, W)."""
        gx, gy, gz = (float(g) for g in self.image_gradient)
        phi = gx * grid.x + gy * grid.y + gz * z + self.image_twist * grid.x * grid.y
        phi = phi + 0.3 * self.image_field.at(grid, z)
        return np.exp(1j * phi).astype(np.complex64)


def reconstruct(kspace: ComplexArray, size: tuple[int, int]) -> FloatArray:
    """One slice, crop rss F^-1 k: complex64 (coil, H, W) -> float32 (h, w)."""
    image: FloatArray = center_crop(rss(to_image(torch.from_numpy(kspace))), size)[0].numpy()
    return image


def measure(kspace: ComplexArray, sigma: float, spec: PhantomSpec, rng: Generator) -> None:
    """In place, k <- A (k + n), E|n|^2 = sigma^2; the orthonormal FFT keeps white noise white."""
    noise = rng.standard_normal((*kspace.shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
    kspace += noise * np.float32(sigma / np.sqrt(2))
    left, right = spec.acquired
    kspace[..., :left] = 0
    kspace[..., right:] = 0


def scan(
    spec: PhantomSpec,
    anatomy: Callable[[float], FloatArray],
    receiver: Receiver,
    level: float,
    sigma: float,
    noise: Generator,
) -> tuple[ComplexArray, FloatArray]:
    """K-space and target of all slices of an anatomy, with noise.

    Args:
        spec: sizes.
        anatomy: of the slice at z mm, real (H, W).
        receiver: coils and image phase.
        level: the 99.5th percentile of the clean images.
        sigma: of the noise, per coil and image pixel.
        noise: where that comes from.
    """
    grid = Grid.of(spec.kspace_size, spec.pixel_mm)
    kspace = np.zeros((spec.slices, spec.coils, *spec.kspace_size), dtype=np.complex64)
    target = np.zeros((spec.slices, *spec.target_size), dtype=np.float32)
    positions = np.linspace(-SLICE_RANGE_MM, SLICE_RANGE_MM, spec.slices).tolist()
    for index, z in enumerate(positions):
        coil_images = receiver.sens_maps(grid, z) * (receiver.image_phase(grid, z) * anatomy(z))
        kspace[index] = to_kspace(torch.from_numpy(coil_images)).numpy()
        target[index] = reconstruct(kspace[index], spec.target_size)  # still without noise

    kspace *= np.float32(level / np.percentile(target, PERCENTILE))
    for index in range(spec.slices):
        measure(kspace[index], sigma, spec, noise)
        target[index] = reconstruct(kspace[index], spec.target_size)
    return kspace, target


def make_volume(spec: PhantomSpec, seed: int) -> PhantomVolume:
    """One knee, all its slices: a pure function of `spec` and `seed`.

    The same seed at another matrix size gives the same knee. Shape, texture, coils and noise have
    their own random streams, so that none depends on how much the others draw.

    Args:
        spec: sizes, noise and contrast.
        seed: not negative.

    Returns:
        The volume; k-space complex64 (slice, coil, H, W), target float32 (slice, h, w), unitless
        values scaled as in fastMRI (clean 99.5th percentile 3e-4 to 6e-4 in PD, 1.2e-4 to 2.5e-4
        in PDFS).

    Raises:
        ValueError: `seed` is negative.
    """
    streams = np.random.SeedSequence(seed).spawn(5)
    protocol, shape, texture, coil, noise = (np.random.default_rng(stream) for stream in streams)
    fat_suppressed = protocol.random() < spec.fat_suppressed_share
    contrast: Contrast = "PDFS" if fat_suppressed else "PD"
    system_model = str(protocol.choice(SYSTEM_MODELS))
    level = log_uniform(protocol, *SIGNAL_LEVEL[contrast])
    sigma = level * log_uniform(protocol, *spec.noise) * (1 if fat_suppressed else PD_NOISE_SHARE)

    grid = Grid.of(spec.kspace_size, spec.pixel_mm)
    signals = draw_signals(shape, contrast)
    knee = Knee.draw(shape)
    fields = draw_fields(texture)
    receiver = Receiver.draw(coil, spec.coils)

    kspace, target = scan(
        spec,
        lambda z: render_slice(knee, signals, fields, grid, z),
        receiver,
        level,
        sigma,
        noise,
    )
    return PhantomVolume(
        spec=spec,
        seed=seed,
        contrast=contrast,
        kspace=kspace,
        target=target,
        noise_sigma=sigma,
        system_model=system_model,
    )
