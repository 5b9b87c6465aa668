"""One HDF5 file in the fastMRI layout: its sizes, contrast and scanner, without its pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from banding_removal.data.hdf5 import (
    READ_ERRORS,
    check_stored,
    checked_name,
    holds,
    name_attribute,
    number_attribute,
    open_file,
    own_dataset,
    read_text,
)
from banding_removal.data.ismrmrd import parse_header

SUFFIX = ".h5"


class VolumeError(Exception):
    """Unusable files; the message names each and says why."""

    @classmethod
    def of_all(cls, problems: Sequence[str]) -> "VolumeError":
        """One error for several files, a line for each."""
        lines = "\n".join(f"  {problem}" for problem in problems)
        return cls(f"{len(problems)} unusable volume(s):\n{lines}")


@dataclass(frozen=True, kw_only=True)
class Volume:
    """One HDF5 file in the fastMRI layout (Zbontar et al., arXiv 1811.08839)."""

    path: str
    bytes: int
    mtime_ns: int
    slices: int
    coils: int | None  # None: single-coil file, k-space without a coil axis
    height: int  # readout
    width: int  # phase encode
    target_key: str | None
    target_size: tuple[int, int] | None
    data_range: float | None  # largest value of the target, attribute `max`
    acquisition: str
    scanner: str
    field_strength: float | None  # tesla
    acquired: tuple[int, int] | None  # phase-encode columns [left, right), from the header
    recon_size: tuple[int, int] | None  # of the scanner's images, from the header
    measured: str | None  # own mask of an undersampled file, a 0 or 1 for each column

    @property
    def name(self) -> str:
        """File name, which seeds the volume's mask."""
        return Path(self.path).name

    def unchanged(self) -> bool:
        """Whether the file still has the size and modification time of the index."""
        try:
            stat = Path(self.path).stat()
        except OSError:
            return False
        return (stat.st_size, stat.st_mtime_ns) == (self.bytes, self.mtime_ns)

    @property
    def group(self) -> str:
        """Key of the validation metrics per contrast, scanner_acquisition."""
        return f"{self.scanner}_{self.acquisition}"

    @property
    def acceleration(self) -> int | None:
        """Columns / measured columns, rounded, of a file that the scanner undersampled."""
        if self.measured is None or "1" not in self.measured:
            return None
        return round(len(self.measured) / self.measured.count("1"))


def read_volume(path: Path) -> Volume:
    """Read and check everything in a file except its pixels.

    Raises:
        VolumeError: the file is not HDF5, is truncated, or does not have the fastMRI layout.
    """
    try:
        stat = path.stat()
        with open_file(path) as file:
            fields = _read_fields(file)
    except READ_ERRORS as error:
        why = " ".join(str(error).split()) or repr(error)
        raise VolumeError(f"{path}: {why}") from error
    return Volume(
        path=str(path.absolute()), bytes=stat.st_size, mtime_ns=stat.st_mtime_ns, **fields
    )


def _read_fields(file: h5py.File) -> dict[str, Any]:
    kspace = own_dataset(file, "kspace")
    if kspace.ndim not in (3, 4):
        raise ValueError(
            f"kspace has shape {kspace.shape}; expected [slice, coil, H, W] (or [slice, H, W])"
        )
    if kspace.dtype != np.complex64:
        raise ValueError(f"kspace has dtype {kspace.dtype}; expected complex64")
    if 0 in kspace.shape:
        raise ValueError(f"kspace is empty, shape {kspace.shape}")
    check_stored(kspace)
    slices, *coil_axis, height, width = map(int, kspace.shape)

    preferred = (
        ["reconstruction_rss"] if coil_axis else ["reconstruction_esc", "reconstruction_rss"]
    )
    target_key = next((key for key in preferred if holds(file, key)), None)
    target_size, data_range = None, None
    if target_key is not None:
        target = own_dataset(file, target_key)
        if target.ndim != 3 or target.shape[0] != slices or target.dtype.kind != "f":
            raise ValueError(
                f"{target_key} is {target.dtype} {target.shape}; "
                f"expected real [{slices}, h, w] for {slices} slices of k-space"
            )
        if 0 in target.shape:
            raise ValueError(f"{target_key} is empty, shape {target.shape}")
        check_stored(target)
        target_size = (int(target.shape[1]), int(target.shape[2]))
        data_range = number_attribute(file, "max")
        if data_range is None:
            data_range = float(np.max([np.max(image) for image in target]))
        if not (np.isfinite(data_range) and data_range > 0):
            raise ValueError(f"the largest value of {target_key} is {data_range}")

    header = parse_header(read_text(file, "ismrmrd_header"))
    acquired = header.acquired
    if acquired is not None and not (0 <= acquired[0] < acquired[1] <= width):
        acquired = None  # the header describes another matrix; `SliceDataset` reports it
    return {
        "slices": slices,
        "coils": coil_axis[0] if coil_axis else None,
        "height": height,
        "width": width,
        "target_key": target_key,
        "target_size": target_size,
        "data_range": data_range,
        "acquisition": _acquisition(file),
        "scanner": checked_name(header.scanner, "scanner in the ISMRMRD header"),
        "field_strength": header.field_strength,
        "acquired": acquired,
        "recon_size": header.recon_size,
        "measured": _measured(file, width),
    }


def _acquisition(file: h5py.File) -> str:
    name = name_attribute(file, "acquisition") or "unknown"
    # T1 before contrast agent counts as T1.
    return "AXT1" if name == "AXT1PRE" else name


def _measured(file: h5py.File, width: int) -> str | None:
    if not holds(file, "mask"):
        return None
    mask = own_dataset(file, "mask")
    if mask.shape != (width,) or mask.dtype.kind not in "biuf":
        raise ValueError(
            f"mask has shape {mask.shape}, type {mask.dtype}; expected a number for each of "
            f"{width} columns"
        )
    check_stored(mask)
    columns = mask[()].astype(bool)
    if not columns.any():
        raise ValueError("mask says that no column was measured")
    return "".join("1" if column else "0" for column in columns)
