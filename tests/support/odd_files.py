"""Small files that are plausible, with one thing in them that is odd."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np

SIZE = 64
AXES = (-2, -1)


def phantom_kspace(
    slices: int = 3, coils: int = 4, size: tuple[int, int] = (SIZE, SIZE), seed: int = 0
) -> np.ndarray:
    """K-space of an ellipse with spots, seen by coils around it: complex64 [slice, coil, H, W].

    Slices differ, as do seeds; no image equals its mirror images.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    images = []
    for _ in range(slices):
        body = ((x / 0.75) ** 2 + (y / 0.9) ** 2 < 1) * 0.3
        for _ in range(8):
            cx, cy = rng.uniform(-0.6, 0.6, 2)
            body = body + (np.hypot(x - cx, y - cy) < rng.uniform(0.1, 0.3)) * rng.uniform(0.2, 1.5)
        turns = 2 * np.pi * np.arange(coils) / coils
        maps = [np.exp(-((x - np.cos(t)) ** 2) - (y - np.sin(t)) ** 2 + 1j * t) for t in turns]
        images.append(body * np.stack(maps))
    stack = np.stack(images)
    noise = rng.standard_normal(stack.shape) + 1j * rng.standard_normal(stack.shape)
    shifted = np.fft.ifftshift(1e-4 * (stack + 0.02 * noise), axes=AXES)
    return np.fft.fftshift(np.fft.fft2(shifted, norm="ortho"), axes=AXES).astype(np.complex64)


def rss_image(kspace: np.ndarray) -> np.ndarray:
    """Root-sum-of-squares images of [slice, coil, H, W]: float32 [slice, H, W]."""
    shifted = np.fft.ifft2(np.fft.ifftshift(kspace, axes=AXES), norm="ortho")
    images = np.fft.fftshift(shifted, axes=AXES)
    return np.sqrt((abs(images) ** 2).sum(1)).astype(np.float32)


def header(
    height: int = SIZE,
    width: int = SIZE,
    *,
    acquired: tuple[int, int] | None = None,
    channels: int | None = None,
) -> bytes:
    """An ISMRMRD header that describes k-space of this size."""
    left, right = acquired or (0, width)
    size = f"<matrixSize><x>{height}</x><y>{width}</y><z>1</z></matrixSize>"
    receivers = "" if channels is None else f"<receiverChannels>{channels}</receiverChannels>"
    return (
        '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><acquisitionSystemInformation>'
        "<systemModel>Aera</systemModel><systemFieldStrength_T>1.494</systemFieldStrength_T>"
        f"{receivers}</acquisitionSystemInformation><encoding>"
        f"<encodedSpace>{size}</encodedSpace><reconSpace>{size}</reconSpace>"
        f"<encodingLimits><kspace_encoding_step_1><maximum>{right - left - 1}</maximum>"
        f"<center>{width // 2 - left}</center></kspace_encoding_step_1></encodingLimits>"
        "</encoding></ismrmrdHeader>"
    ).encode()


def odd_volume(
    path: Path,
    *,
    kspace: np.ndarray | None = None,
    target: Any = "rss",
    header: Any = "fits",
    mask: np.ndarray | None = None,
    **attributes: Any,
) -> Path:
    """Write one volume; what is None is left out, an attribute that is None, too."""
    kspace = phantom_kspace() if kspace is None else kspace
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(target, str):
        target = rss_image(kspace)
    if isinstance(header, str):
        header = _header_of(kspace)
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace.astype(np.complex64)
        if target is not None:
            file["reconstruction_rss"] = target.astype(np.float32)
            attributes = {"max": float(target.max()), **attributes}
        for name, content in (("ismrmrd_header", header), ("mask", mask)):
            if content is not None:
                file[name] = content
        for name, value in {"acquisition": "CORPD_FBK", **attributes}.items():
            if value is not None:
                file.attrs[name] = value
    return path


def _header_of(kspace: np.ndarray) -> bytes:
    return header(*kspace.shape[-2:])
