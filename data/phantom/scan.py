"""The scan of a phantom: multi-coil k-space and target of a volume, made from a seed.

    volume = make_volume(DEMO, seed=0)

The signal model, for slice z, coil c and noise n of standard deviation sigma:

    k_c = A F ( S_c(x, y, z) exp(i phi(x, y, z)) m(x, y, z) + n_c ),    target = crop rss_c F^-1 k_c

with m the anatomy, phi the image phase, S the coil sensitivities, F the centred orthonormal FFT
and A the acquired columns. Anatomy, phase and sensitivities are functions of position in mm, so
that any matrix, square or not, samples the same knee. The target contains the noise on purpose: a
predictor cannot know it, smooths where signal is low, and does so anisotropically (banding).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.random import Generator

from banding_removal.data.operators import center_crop, rss, to_image, to_kspace
from banding_removal.data.phantom.knee import Knee
from banding_removal.data.phantom.leaves import Leaves
from banding_removal.data.phantom.receiver import ComplexArray, Receiver
from banding_removal.data.phantom.shapes import SLICE_RANGE_MM, FloatArray, Grid, log_uniform
from banding_removal.data.phantom.spec import PhantomSpec
from banding_removal.data.phantom.tissues import Contrast, draw_fields, draw_signals, render_slice

PD_NOISE_SHARE = 0.5  # PD noise over PDFS noise: without fat suppression there is more signal
PERCENTILE = 99.5  # of the volume without noise; `PhantomSpec.noise` is relative to it
SIGNAL_LEVEL = {"PD": (3e-4, 6e-4), "PDFS": (1.2e-4, 2.5e-4)}  # range of its values, as in fastMRI
SYSTEM_MODELS = ("Phantom_A", "Phantom_B")  # invented scanners


@dataclass(frozen=True, kw_only=True)
class PhantomVolume:
    """One volume in memory, with all that its file holds: the result of `make_volume`."""

    spec: PhantomSpec
    seed: int
    contrast: Contrast
    kspace: ComplexArray  # (slice, coil, H, W), zero outside the acquired columns
    target: FloatArray  # float32 (slice, h, w): crop of rss of the inverse FFT of `kspace`
    noise_sigma: float  # root of E|n|^2 per coil and image pixel, in the unit of `kspace`
    system_model: str


def reconstruct(kspace: ComplexArray, size: tuple[int, int]) -> FloatArray:
    """The image of one slice, crop rss F^-1 k: complex64 (coil, H, W) -> float32 (h, w)."""
    image: FloatArray = center_crop(rss(to_image(torch.from_numpy(kspace))), size)[0].numpy()
    return image


def measure(kspace: ComplexArray, sigma: float, spec: PhantomSpec, rng: Generator) -> None:
    """In place, k <- A (k + n) with E|n|^2 = sigma^2: an orthonormal FFT keeps noise white."""
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
        spec: sizes and acquired columns.
        anatomy: function of z in mm, the slice there, real (H, W).
        receiver: coils and image phase.
        level: the 99.5th percentile that the images have without noise.
        sigma: root of E|n|^2, per coil and image pixel.
        noise: generator of the noise.

    Returns:
        K-space complex64 (slice, coil, H, W), target float32 (slice, h, w).
    """
    grid = Grid.of(spec.kspace_size, spec.pixel_mm)
    kspace = np.zeros((spec.slices, spec.coils, *spec.kspace_size), dtype=np.complex64)
    target = np.zeros((spec.slices, *spec.target_size), dtype=np.float32)
    positions = np.linspace(-SLICE_RANGE_MM, SLICE_RANGE_MM, spec.slices).tolist()
    for index, z in enumerate(positions):
        coil_images = receiver.sens_maps(grid, z) * (receiver.image_phase(grid, z) * anatomy(z))
        kspace[index] = to_kspace(torch.from_numpy(coil_images)).numpy()
        target[index] = reconstruct(kspace[index], spec.target_size)  # without noise yet

    kspace *= np.float32(level / np.percentile(target, PERCENTILE))
    for index in range(spec.slices):
        measure(kspace[index], sigma, spec, noise)
        target[index] = reconstruct(kspace[index], spec.target_size)
    return kspace, target


def make_volume(spec: PhantomSpec, seed: int) -> PhantomVolume:
    """All slices of one knee, or other anatomy; a pure function of `spec` and `seed`.

    A seed gives the same anatomy at any matrix size. Shape, texture, coils and noise have their own
    random streams, so that none depends on how much the others draw.

    Args:
        spec: sizes, coils, noise and contrast.
        seed: not negative.

    Returns:
        The volume, in arbitrary units scaled as in fastMRI (99.5th percentile without noise 3e-4
        to 6e-4 in PD, 1.2e-4 to 2.5e-4 in PDFS).

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
    receiver = Receiver.draw(coil, spec.coils, spec.coil_radius_mm)
    if spec.anatomy == "leaves":
        anatomy = partial(Leaves.draw(shape).render, grid)
    else:
        signals = draw_signals(shape, contrast, spec.signal_spread)
        anatomy = partial(render_slice, Knee.draw(shape), signals, draw_fields(texture), grid)
    kspace, target = scan(spec, anatomy, receiver, level, sigma, noise)
    return PhantomVolume(
        spec=spec,
        seed=seed,
        contrast=contrast,
        kspace=kspace,
        target=target,
        noise_sigma=sigma,
        system_model=system_model,
    )
