"""Reconstructed volumes as files: fastMRI's submission layout, where they are from, previews."""

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np

from banding_removal.data.hdf5 import READ_ERRORS, holds, open_file, own_dataset
from banding_removal.data.in_subprocess import SubprocessLostError, map_in_subprocess
from banding_removal.files import atomic_write
from banding_removal.pictures.grids import Pixels, Row, grey, write_page
from banding_removal.reconstruction.volume import SliceImage

DATASET = "reconstruction"
PREVIEWS = "previews"
PREVIEW_SLICES = 4
_LEFTOVER = re.compile(r"\..+\.(h5|png)\.[0-9a-f]{32}")  # a temporary name of `atomic_write`


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a reconstruction comes from: attributes of its file."""

    checkpoint: str  # path
    checkpoint_sha256: str
    epoch: int
    step: int
    source: str  # path of the volume
    source_bytes: int
    orientation: str  # axis of phase encoding: x as it was acquired, y transposed
    version: str  # of this package


# What makes two reconstructions the same. A checkpoint holds its mask settings; that it was moved
# is no difference.
_IDENTITY = ("checkpoint_sha256", "source", "source_bytes", "orientation")


def write_reconstruction(path: Path, slices: Sequence[SliceImage], origin: Origin) -> None:
    """Write the images as dataset `reconstruction`, float32 [slice, h, w], whole or not at all.

    Attributes: those of `Origin`, and `acceleration` (columns of k-space over those measured),
    `measured_columns` and `acs_lines`, of the first slice.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    first = slices[0]
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file[DATASET] = np.stack([item.image.numpy() for item in slices])
        file.attrs.update(asdict(origin))
        file.attrs["acceleration"] = first.columns / max(first.measured_columns, 1)
        file.attrs["measured_columns"] = first.measured_columns
        file.attrs["acs_lines"] = first.acs_lines
    _write(path, buffer.getvalue())


def difference(path: Path, origin: Origin, shape: tuple[int, ...]) -> str | None:
    """What tells a file from the reconstruction that `origin` describes; None: it is the same."""
    try:
        with open_file(path) as file:
            found = {key: _attribute(file, key) for key in asdict(origin)}
            found_shape = own_dataset(file, DATASET).shape if holds(file, DATASET) else None
    except READ_ERRORS as error:
        return f"cannot be read ({' '.join(str(error).split())})"
    if found_shape is None or found["checkpoint_sha256"] is None:
        return "is not a reconstruction that was made here"
    if any(found[key] != getattr(origin, key) for key in _IDENTITY):
        return (
            f"was made from {found['checkpoint']} (epoch {found['epoch']}, step {found['step']}) "
            f"and {found['source']}, orientation {found['orientation']}"
        )
    return None if found_shape == shape else f"has shape {found_shape} instead of {shape}"


def differences(
    files: Sequence[tuple[Path, Origin, tuple[int, ...]]], seconds: float | None = None
) -> Iterator[str | None]:
    """What `difference` says of each, whatever a file does to HDF5: they are read apart."""
    for found in map_in_subprocess(lambda item: difference(*item), files, seconds):
        yield f"cannot be read ({found})" if isinstance(found, SubprocessLostError) else found


def _attribute(file: h5py.File, key: str) -> str | int | None:
    """An attribute as `write_reconstruction` writes it; None for anything else."""
    if key not in file.attrs or file.attrs.get_id(key).shape != ():
        return None
    value = file.attrs[key]
    if isinstance(value, np.integer):
        return int(value)
    return value if isinstance(value, str) else None


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed while writing left in a folder of reconstructions."""
    for path in (*folder.glob(".*"), *folder.glob(f"{PREVIEWS}/.*")):
        if _LEFTOVER.fullmatch(path.name):
            path.unlink()


def write_preview(
    path: Path, slices: Sequence[SliceImage], *, header: Sequence[str], window: float
) -> None:
    """Write a page of a few slices: target (if there is one) and reconstruction, then low signal.

    The first two are scaled by the slice's maximum, of the target if there is one. White of the
    low-signal pictures is `window` times the maximum over all slices.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    references = [item.image if item.target is None else item.target for item in slices]
    white = window * max(float(image.max()) for image in references) or 1.0
    rows: list[Row] = []
    for index in np.linspace(0, len(slices) - 1, PREVIEW_SLICES + 1)[:PREVIEW_SLICES].round():
        item, scale = slices[int(index)], float(references[int(index)].max()) or 1.0
        pictures: dict[str, Pixels] = {}
        if item.target is not None:
            pictures["target"] = grey(item.target, 0, scale)
        pictures["reconstruction"] = grey(item.image, 0, scale)
        if item.target is not None:
            pictures["target, low signal"] = grey(item.target, 0, white)
        pictures["reconstruction, low signal"] = grey(item.image, 0, white)
        caption = (
            f"slice {item.slice_index}: {item.measured_columns} of {item.columns} phase-encode "
            f"columns measured (1 in {item.columns / max(item.measured_columns, 1):.2f}), "
            f"{item.acs_lines} of them the centre"
        )
        rows.append((pictures, caption))
    try:
        write_page(path, rows, header)
    except OSError as error:
        raise _not_written(path, error) from error


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content)
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> OSError:
    return OSError(
        f"cannot write {path}: {error}. What was written before is whole; the same command goes on."
    )
