"""Files of encoded images: `slices/target.npz` and `slices/epoch012.npz` in a run's folder."""

import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from banding_removal.files import atomic_write

_NAME = re.compile(r"epoch(\d+)\.npz")
DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)

Images = dict[tuple[str, int], bytes]  # encoded; by kind (target, x, y) and position of the slice


def epoch_files(kept: Path) -> dict[int, Path]:
    """The files of epochs, in their order."""
    matches = ((path, _NAME.fullmatch(path.name)) for path in kept.glob("epoch*.npz"))
    return dict(sorted((int(match[1]), path) for path, match in matches if match))


def read_about(path: Path) -> Any:
    """The description in a file; None if the file is damaged and has to be written again."""
    try:
        with _opened(path) as content:
            return json.loads(str(content["about"]))
    except DAMAGED:
        return None


def read_file(path: Path) -> tuple[Any, Images]:
    """The description in a file, and its images.

    Raises:
        OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile: it is damaged.
    """
    with _opened(path) as content:
        about = json.loads(str(content["about"]))
        names = [name.rpartition("_") for name in content.files if name != "about"]
        images = {(kind, int(i)): content[f"{kind}_{i}"].tobytes() for kind, _, i in names}
    return about, images


def write_file(path: Path, about: str, images: Mapping[tuple[str, int], bytes]) -> None:
    """Write a file, whole or not at all."""
    arrays = {
        f"{kind}_{position}": np.frombuffer(stream, np.uint8)
        for (kind, position), stream in images.items()
    }
    buffer = io.BytesIO()
    np.savez(buffer, about=np.array(about), **arrays)  # type: ignore[arg-type]
    atomic_write(path, buffer.getbuffer())


def _opened(path: Path) -> Any:
    """A file's arrays; pickled objects are refused. Read whole: numpy leaves damaged files open."""
    return np.load(io.BytesIO(path.read_bytes()))
