"""One HDF5 file in the fastMRI layout: its sizes, contrast and scanner, without its pixels."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from banding_removal.data.hdf5 import (
    READ_ERRORS,
    NotTextError,
    check_stored,
    holds,
    name_attribute,
    number_attribute,
    open_file,
    own_dataset,
    read_text,
)
from banding_removal.data.ismrmrd import ScanHeader, parse_header
from banding_removal.data.notes import Note, unique
from banding_removal.data.one_slice import check_slice
from banding_removal.data.plausibility import check_shape
from banding_removal.data.stored_mask import read_mask

T = TypeVar("T")

SUFFIX = ".h5"
MAX_TOLERANCE = 1e-3  # relative, of the attribute max: it may have been printed and read
# Largest values of targets for which sums of squares of k-space fit into single precision.
SMALLEST_UNIT, LARGEST_UNIT = 1e-18, 1e16


class VolumeError(Exception):
    """Unusable files; the message names each and says why."""

    @classmethod
    def of_all(cls, problems: Sequence[str], *, others: int = 0) -> "VolumeError":
        """One error for several files, a line for each.

        Args:
            problems: the path of a file, and what is wrong with it.
            others: number of volumes that are left without these.
        """
        lines = "\n".join(f"  {problem}" for problem in problems)
        way = f" (the other {others} can be used with skip_bad_volumes=true)" if others else ""
        return cls(f"{len(problems)} unusable volume(s){way}:\n{lines}")


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
    data_range: float | None  # largest value of the target
    acquisition: str
    scanner: str
    field_strength: float | None  # tesla
    acquired: tuple[int, int] | None  # phase-encode columns [left, right), from the header
    recon_size: tuple[int, int] | None  # of the scanner's images, from the header
    measured: str | None  # what the scanner measured, 0 or 1 for each column; None: everything
    kspace_factor: float = 1.0  # by which k-space is multiplied, if its target has another unit
    notes: tuple[Note, ...] = ()  # what is odd in the file

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
    def centre_measured(self) -> bool:
        """Whether the middle column was measured; sensitivity maps are estimated around it."""
        return self.measured is None or self.measured[self.width // 2] == "1"

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


def volume_paths(folder: Path) -> list[Path]:
    """The *.h5 files of a folder, by name, without hidden ones (`._v.h5` is a Mac's side file)."""
    return sorted(path for path in folder.glob("*" + SUFFIX) if not path.name.startswith("."))


def read_volume(path: Path) -> Volume:
    """Read and check everything in a file, of its k-space only one slice.

    Raises:
        VolumeError: the file is not HDF5, is truncated, does not have the fastMRI layout, or has
            axes in another order; its path is not text.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:  # logs, pages and random seeds are made of it
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise VolumeError(f"{shown}: its path is not text (UTF-8): rename it") from None
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
    kspace = _kspace(file)
    slices, *coil_axis, height, width = map(int, kspace.shape)
    target = _target(file, slices, single_coil=not coil_axis)
    target_size = None if target is None else (int(target.shape[-2]), int(target.shape[-1]))
    header, notes = _header(file, (height, width))
    notes += check_shape(kspace.shape, header, target_size)
    data_range = None
    if target is not None:
        data_range, found = _data_range(target, _attribute(number_attribute, file, "max", notes))
        notes += found
    mask = read_mask(file, kspace.size // width, width)
    found_in_slice = check_slice(kspace, target, header, mask)
    measured = found_in_slice.measured
    notes += found_in_slice.notes
    return {
        "slices": slices,
        "coils": coil_axis[0] if coil_axis else None,
        "height": height,
        "width": width,
        "target_key": None if target is None else target.name.lstrip("/"),
        "target_size": target_size,
        "data_range": data_range,
        "acquisition": _acquisition(file, notes),
        "scanner": header.scanner,
        "field_strength": header.field_strength,
        "acquired": _acquired(file, header, width, notes),
        "recon_size": header.recon_size,
        "kspace_factor": found_in_slice.kspace_factor,
        "measured": None if measured is None else "".join("01"[int(c)] for c in measured),
        "notes": tuple(unique(notes)),
    }


def _kspace(file: h5py.File) -> h5py.Dataset:
    kspace = own_dataset(file, "kspace")
    if kspace.dtype.kind != "c" or kspace.dtype.itemsize not in (8, 16):
        parts = kspace.dtype.kind == "V" or (kspace.ndim > 3 and kspace.shape[-1] == 2)
        hint = ": combine real and imaginary parts into complex numbers" if parts else ""
        raise ValueError(
            f"kspace has shape {kspace.shape}, dtype {kspace.dtype}; expected complex64{hint}"
        )
    if kspace.ndim not in (3, 4):
        raise ValueError(
            f"kspace has shape {kspace.shape}; expected [slice, coil, H, W] (or [slice, H, W])"
            + ": average or split further axes (averages, echoes)" * (kspace.ndim > 4)
        )
    if 0 in kspace.shape:
        raise ValueError(f"kspace is empty, shape {kspace.shape}")
    check_stored(kspace)
    return kspace


def _target(file: h5py.File, slices: int, *, single_coil: bool) -> h5py.Dataset | None:
    keys = ["reconstruction_esc", "reconstruction_rss"] if single_coil else ["reconstruction_rss"]
    key = next((key for key in keys if holds(file, key)), None)
    if key is None:
        return None
    target = own_dataset(file, key)
    images = target.ndim == 3 or (target.ndim == 4 and target.shape[1] == 1)
    if not images or target.shape[0] != slices or target.dtype.kind not in "fiu":
        raise ValueError(
            f"{key} is {target.dtype} {target.shape}; "
            f"expected real [{slices}, h, w] for {slices} slices of k-space"
        )
    if 0 in target.shape:
        raise ValueError(f"{key} is empty, shape {target.shape}")
    check_stored(target)
    return target


def _data_range(target: h5py.Dataset, stored: float | None) -> tuple[float, list[Note]]:
    """The largest value of a target; it is compared with the attribute `max`.

    Values that are not finite are left to the reading of slices, which names the slice.
    """
    key = target.name.lstrip("/")
    largest = max(map(_largest, target))
    if not largest > 0:
        said = "" if stored is None else f", the attribute max is {stored:g}"
        raise ValueError(f"the largest value of {key} is {largest:g}{said}")
    if not SMALLEST_UNIT <= largest <= LARGEST_UNIT:
        raise ValueError(
            f"the largest value of {key} is {largest:g}, beyond single precision when squared: "
            "rescale k-space and targets to about 1e-4, as in fastMRI"
        )
    if stored is not None and not abs(stored - largest) <= MAX_TOLERANCE * largest:
        return largest, [("wrong_max", f"max is {stored:g}, the largest value {largest:g}")]
    return largest, []


def _largest(image: NDArray[Any]) -> float:
    largest = float(np.max(image))
    return largest if np.isfinite(largest) else float(np.max(image[np.isfinite(image)], initial=0))


def _attribute(
    read: Callable[[h5py.File, str], T | None], file: h5py.File, key: str, notes: list[Note]
) -> T | None:
    """An attribute; None, with a note, where it is of another type."""
    try:
        return read(file, key)
    except ValueError as error:
        notes.append(("unclear_attribute", str(error)))
        return None


def _header(file: h5py.File, matrix: tuple[int, int]) -> tuple[ScanHeader, list[Note]]:
    try:
        text = read_text(file, "ismrmrd_header") if holds(file, "ismrmrd_header") else b""
    except NotTextError as error:
        return ScanHeader(), [("unclear_header", str(error))]
    if not text.strip(b"\0 \t\r\n"):
        return ScanHeader(), [("no_header", "missing or empty")]
    header = parse_header(text, matrix)
    return header, [("unclear_header", header.problems[0])] if header.problems else []


def _acquired(
    file: h5py.File, header: ScanHeader, width: int, notes: list[Note]
) -> tuple[int, int] | None:
    """The acquired columns of the header, or else of the attributes padding_left, padding_right."""
    padding = [
        _attribute(number_attribute, file, f"padding_{side}", notes) for side in ("left", "right")
    ]
    found = header.acquired
    if header.encoded_size is not None and header.encoded_size[1] != width:
        found = None  # the header describes another matrix
    left, right = padding
    if found is None and left is not None and right is not None and left + right < math.inf:
        found = (round(left), round(right))
    # What is still None, `SliceDataset` reports where it is needed.
    return found if found is not None and 0 <= found[0] < found[1] <= width else None


def _acquisition(file: h5py.File, notes: list[Note]) -> str:
    name = _attribute(name_attribute, file, "acquisition", notes) or "unknown"
    # T1 before contrast agent counts as T1.
    return "AXT1" if name == "AXT1PRE" else name
