"""The receive coils of the phantom's scanner, and the phase of its images."""

from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from banding_removal.data.phantom.shapes import FloatArray, Grid, SmoothField, normal

ComplexArray = NDArray[np.complex64]


class Receiver(NamedTuple):
    """Coil loops around the leg, and the phase of the image.

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
    def draw(cls, rng: Generator, coils: int, radius_mm: tuple[float, float]) -> "Receiver":
        """Loops on an elliptic cylinder, in two rings (up to 8 coils) or three, zigzag.

        Args:
            rng: source of all draws.
            coils: how many.
            radius_mm: range of the loops' radii a_c.
        """
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
            radius=rng.uniform(*radius_mm, coils).astype(np.float32),
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
