"""Small files in the fastMRI layout, of any size and with any part missing."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from banding_removal.data.operators import center_crop, rss, to_image

HEADER = """<?xml version="1.0" encoding="UTF-8"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
 <acquisitionSystemInformation>
  <systemVendor>none</systemVendor><systemModel>{scanner}</systemModel>
  <systemFieldStrength_T>{field_strength}</systemFieldStrength_T>
 </acquisitionSystemInformation>
 <encoding>
  <encodedSpace><matrixSize><x>{height}</x><y>{width}</y><z>1</z></matrixSize></encodedSpace>
  <reconSpace><matrixSize><x>{recon_height}</x><y>{recon_width}</y><z>1</z></matrixSize></reconSpace>
  <encodingLimits>
   <kspace_encoding_step_1><minimum>0</minimum><maximum>{maximum}</maximum><center>{center}</center>
   </kspace_encoding_step_1>
  </encodingLimits>
 </encoding>
</ismrmrdHeader>"""


def make_kspace(
    slices: int,
    coils: int | None,
    height: int,
    width: int,
    acquired: tuple[int, int],
    seed: int = 0,
) -> np.ndarray:
    """K-space of a disc with noise, complex64 [slice, (coil,) H, W], zero outside `acquired`."""
    rng = np.random.default_rng(seed)
    shape = (slices, coils or 1, height, width)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    image = (x**2 + y**2 < 0.5) * 1e-4 * (1 + 0.5 * np.sin(9 * x + 4 * y))
    noise = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    coil_images = image * rng.uniform(0.5, 1, (slices, coils or 1, 1, 1)) + 5e-6 * noise
    kspace = np.fft.fftshift(
        np.fft.fft2(np.fft.ifftshift(coil_images, axes=(-2, -1)), norm="ortho"), axes=(-2, -1)
    ).astype(np.complex64)
    kspace[..., : acquired[0]] = 0
    kspace[..., acquired[1] :] = 0
    return kspace if coils is not None else kspace[:, 0]


def write_volume(
    path: Path,
    *,
    slices: int = 4,
    coils: int | None = 3,
    size: tuple[int, int] = (32, 28),
    target_size: tuple[int, int] = (24, 24),
    recon_size: tuple[int, int] | None = None,
    acquired: tuple[int, int] | None = None,
    acquisition: str = "CORPD_FBK",
    scanner: str = "Aera",
    field_strength: float = 1.494,
    seed: int = 0,
    mask: np.ndarray | None = None,
    with_target: bool = True,
    header: str | bytes | None = None,
    kspace: np.ndarray | None = None,
    drop: tuple[str, ...] = (),
    attrs: dict[str, Any] | None = None,
) -> Path:
    """Write one volume; `drop` leaves datasets or attributes out.

    K-space is zero where a `mask` [W] leaves out columns; the target is that of all columns. The
    header's reconstruction size is `recon_size`, or else that of k-space.
    """
    height, width = size
    acquired = (2, width - 3) if acquired is None else acquired
    if kspace is None:
        kspace = make_kspace(slices, coils, height, width, acquired, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        leaves_out = mask is not None and mask.shape == kspace.shape[-1:]
        file["kspace"] = kspace * (mask != 0) if leaves_out else kspace
        if with_target:
            images = torch.from_numpy(kspace if coils is not None else kspace[:, None])
            target = center_crop(rss(to_image(images))[:, 0], target_size).numpy()
            file["reconstruction_rss"] = target
            if coils is None:
                file["reconstruction_esc"] = target
            file.attrs["max"] = target.max()
            file.attrs["norm"] = np.linalg.norm(target)
        left, right = acquired
        recon_height, recon_width = recon_size or size
        text = HEADER.format(
            scanner=scanner,
            field_strength=field_strength,
            height=height,
            width=width,
            recon_height=recon_height,
            recon_width=recon_width,
            center=width // 2 - left,
            maximum=right - left - 1,
        )
        file["ismrmrd_header"] = text if header is None else header
        if mask is not None:
            file["mask"] = mask
        file.attrs["acquisition"] = acquisition
        file.attrs["patient_id"] = "0" * 64
        file.attrs.update(attrs or {})
        for name in drop:
            del (file if name in file else file.attrs)[name]
    return path
