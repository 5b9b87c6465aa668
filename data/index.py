"""The index of a folder: what each HDF5 file in it holds, read once and cached on disk.

HDF5 leaks memory whenever variable-length strings (header, attributes) are read, which over days of
training is the leak that fastMRI users know. Here they are read once for each version of a file,
and never while slices are loaded.
"""

import contextlib
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from banding_removal.data.in_subprocess import SubprocessLostError, map_in_subprocess
from banding_removal.data.notes import warn_of_notes
from banding_removal.data.volume import (
    SUFFIX,
    Volume,
    VolumeError,
    read_volume,
    volume_paths,
)

log = logging.getLogger(__name__)

MAX_SHOWN = 8  # files in a message
CACHE_VERSION = 7


def read_volumes(
    paths: Sequence[Path], seconds: float | None = None
) -> Iterator[Volume | VolumeError]:
    """What `read_volume` returns or raises for each file, read in a child process.

    A file that crashes the child or exceeds its limits (`map_in_subprocess`) gives a VolumeError,
    too.
    """
    for path, found in zip(paths, map_in_subprocess(_attempt, paths, seconds), strict=True):
        if isinstance(found, SubprocessLostError):
            yield VolumeError(f"{path}: {found}: it is damaged; replace or remove it")
        else:
            yield found


def _attempt(path: Path) -> Volume | VolumeError:
    try:
        return read_volume(path)
    except VolumeError as error:
        return error


def index_folder(folder: Path, *, cache_folder: Path, skip_bad: bool = False) -> list[Volume]:
    """Index every *.h5 file of a folder, sorted by name; only new or changed files are opened.

    What is odd in files that can be used is logged, a warning for each kind.

    Args:
        folder: for instance <data_path>/multicoil_train.
        cache_folder: for the cached index; created if missing.
        skip_bad: leave unusable files out, with a warning, instead of raising.

    Raises:
        FileNotFoundError: no such folder, or no *.h5 file in it.
        VolumeError: one or more files are unusable (the message names all of them), or, with
            `skip_bad`, every file is.
    """
    paths = volume_paths(folder) if folder.is_dir() else []
    if not paths:
        raise FileNotFoundError(_what_is_there(folder))
    key = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:16]
    cache_path = cache_folder / f"{key}.json"
    cached = _load_cache(cache_path)

    known = {path: cached.get(str(path.absolute())) for path in paths}
    new = [path for path, volume in known.items() if volume is None or not volume.unchanged()]
    bar = tqdm(new, desc=f"index {folder.name}", unit="file", leave=False, delay=1)
    read = dict(zip(bar, read_volumes(new), strict=True))
    found = [read.get(path) or known[path] for path in paths]
    volumes = [volume for volume in found if isinstance(volume, Volume)]
    problems = [str(error) for error in found if isinstance(error, VolumeError)]
    if len(new) > len(problems) or len(volumes) != len(cached):
        _save_cache(cache_path, volumes)
    if problems:
        if not skip_bad or not volumes:
            raise VolumeError.of_all(problems, others=len(volumes))
        log.warning("left out: %s", VolumeError.of_all(problems))
    warn_of_notes(volumes, folder.name)
    return volumes


def _what_is_there(folder: Path) -> str:
    """That a folder is missing or has no volume, and what is there instead."""
    if folder.is_dir():
        message, there = f"{folder} holds no *{SUFFIX} file", folder
    else:
        message, there = f"{folder} is not a folder", folder.parent
    if not there.is_dir():
        return f"{message}; neither is {there}"
    entries = sorted(ascii(entry.name)[1:-1] for entry in there.iterdir())
    more = ", ..." if len(entries) > MAX_SHOWN else ""
    return f"{message}; {there} holds {', '.join(entries[:MAX_SHOWN]) or 'nothing'}{more}"


def _load_cache(path: Path) -> dict[str, Volume]:
    """The cached volumes by path; empty if there is no usable cache."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
        if content["version"] != CACHE_VERSION:
            return {}
        volumes = [Volume(**_tuples(record)) for record in content["volumes"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("the index cache %s is damaged (%s): reading the files again", path, error)
        return {}
    return {volume.path: volume for volume in volumes}


def _tuples(record: dict[str, Any]) -> dict[str, Any]:
    """Lists, which JSON has instead of tuples, as tuples again."""
    return {key: _tuple(value) for key, value in record.items()}


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


def _save_cache(path: Path, volumes: Iterable[Volume]) -> None:
    content = json.dumps(
        {"version": CACHE_VERSION, "volumes": [asdict(volume) for volume in volumes]}
    )
    # Several processes may index a folder at the same time; each replaces the whole file.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(content)
        os.replace(temporary, path)
    except OSError as error:
        # not fatal: the next run reads the files again
        log.warning("the index could not be cached: %s", error)
        with contextlib.suppress(OSError):
            temporary.unlink()
