"""Writing a volume in the fastMRI layout, whole or not at all."""

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray


def write_fastmri(
    path: Path,
    *,
    kspace: NDArray[np.complex64],
    target: NDArray[np.float32] | None,
    header: bytes,
    mask: NDArray[np.uint8] | None = None,
    **attributes: Any,
) -> None:
    """Write uncompressed datasets; an existing file is replaced.

    The file appears whole or not at all: it is written as a hidden `.partial` file in the same
    folder, which must exist, and then renamed. A killed run leaves at most the `.partial` file,
    which the next run overwrites.

    Args:
        path: of the file.
        kspace: complex64 (slice, coil, H, W).
        target: `reconstruction_rss`, float32 (slice, h, w); its maximum and Frobenius norm become
            the attributes `max` and `norm`.
        header: ISMRMRD XML.
        mask: (W,), 1 for each measured column of an undersampled volume.
        attributes: of the file, such as `acquisition` and `patient_id`.

    Raises:
        OSError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    with h5py.File(partial, "w") as file:
        file["kspace"] = kspace
        file["ismrmrd_header"] = header
        if mask is not None:
            file["mask"] = mask
        if target is not None:
            file["reconstruction_rss"] = target
            file.attrs["max"] = float(target.max())
            file.attrs["norm"] = float(np.linalg.norm(target.astype(np.float64)))
        file.attrs.update(attributes)
    os.replace(partial, path)
