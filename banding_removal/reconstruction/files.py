"""Files of reconstructed volumes, in fastMRI's submission layout."""

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
from banding_removal.reconstruction.volume import SliceImage

DATASET = "reconstruction"
PREVIEWS = "previews"  # folder beside the files
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


# Two reconstructions with these attributes are the same. The checkpoint's hash covers its mask
# settings; its path may change.
_IDENTITY = ("checkpoint_sha256", "source", "source_bytes", "orientation")


def write_reconstruction(path: Path, slices: Sequence[SliceImage], origin: Origin) -> None:
    """Write the images as dataset `reconstruction`, float32 [slice, h, w], whole or not at all.

    Attributes are those of `Origin`, and `acceleration` (columns of k-space per measured column),
    `measured_columns` and `acs_lines` of the first slice.

    Raises:
        OSError: the file cannot be written; nothing is left behind.
    """
    first = slices[0]
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file[DATASET] = np.stack([item.image.numpy() for item in slices])
        file.attrs.update(asdict(origin))
        file.attrs["acceleration"] = first.columns / max(first.measured_columns, 1)
        file.attrs["measured_columns"] = first.measured_columns
        file.attrs["acs_lines"] = first.acs_lines
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, buffer.getvalue())
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> OSError:
    """The error to raise, with the path and what to do."""
    return OSError(
        f"cannot write {path}: {error}. Files written before are complete. Give the same command "
        "again to continue."
    )


def difference(path: Path, origin: Origin, shape: tuple[int, ...]) -> str | None:
    """How a file differs from the reconstruction that `origin` describes; None if it does not."""
    try:
        with open_file(path) as file:
            found = {key: _attribute(file, key) for key in asdict(origin)}
            found_shape = own_dataset(file, DATASET).shape if holds(file, DATASET) else None
    except READ_ERRORS as error:
        return f"cannot be read ({' '.join(str(error).split())})"
    if found_shape is None or found["checkpoint_sha256"] is None:
        return "is not a reconstruction by this project"
    if any(found[key] != getattr(origin, key) for key in _IDENTITY):
        return (
            f"was made from {found['checkpoint']} (epoch {found['epoch']}, step {found['step']}) "
            f"and {found['source']}, orientation {found['orientation']}"
        )
    return None if found_shape == shape else f"has shape {found_shape} instead of {shape}"


def differences(
    files: Sequence[tuple[Path, Origin, tuple[int, ...]]], seconds: float | None = None
) -> Iterator[str | None]:
    """`difference` for each file, read in a subprocess: a damaged file may crash HDF5."""
    for found in map_in_subprocess(lambda item: difference(*item), files, seconds):
        yield f"cannot be read ({found})" if isinstance(found, SubprocessLostError) else found


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed while writing left in a folder of reconstructions."""
    for path in (*folder.glob(".*"), *folder.glob(f"{PREVIEWS}/.*")):
        if _LEFTOVER.fullmatch(path.name):
            path.unlink()


def _attribute(file: h5py.File, key: str) -> str | int | None:
    """An attribute of the types that `write_reconstruction` writes; None for anything else."""
    if key not in file.attrs or file.attrs.get_id(key).shape != ():
        return None
    value = file.attrs[key]
    if isinstance(value, np.integer):
        return int(value)
    return value if isinstance(value, str) else None
