"""Checked reading of HDF5 files from untrusted sources.

A file can refer to other files (external links, external storage, virtual datasets), declare more
data than it stores, and hold any type under any name. Everything is checked before it is read; a
problem raises ValueError or another of `READ_ERRORS`, and the caller adds the file's name.
"""

import math
import reprlib
import stat
from itertools import islice
from pathlib import Path

import h5py
import numpy as np

# What h5py and numpy raise for damaged files and impossible sizes.
READ_ERRORS = (
    *(OSError, KeyError, IndexError, TypeError, ValueError, RuntimeError),
    *(OverflowError, MemoryError, SystemError),
)
MAX_COMPRESSION = 100  # declared size of a compressed dataset over its stored size
MAX_TEXT = 1 << 20  # bytes; scanners' headers have some ten thousand
MAX_NAME = 100  # characters


def open_file(path: Path | str) -> h5py.File:
    """Open a file for reading, without a lock.

    Raises:
        OSError: the file does not exist, is not a regular file (opening a pipe would hang) or is
            not HDF5.
    """
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise OSError("it is not a regular file")
    # Many processes read the same volumes, and some cluster file systems have no locks.
    return h5py.File(path, "r", locking=False)


def holds(file: h5py.File, key: str) -> bool:
    """Whether the file has an entry of that name; links are not followed."""
    return bool(file.id.links.exists(key.encode()))


def own_dataset(file: h5py.File, key: str) -> h5py.Dataset:
    """The dataset of that name, whose data the file itself must hold.

    Raises:
        ValueError: there is no such dataset, or it is a link, external or virtual.
    """
    link = file.get(key, getlink=True)
    if isinstance(link, h5py.SoftLink | h5py.ExternalLink):
        kind = "a soft link" if isinstance(link, h5py.SoftLink) else "a link to another file"
        raise ValueError(f"{key} is {kind}, which is refused: put the data into the file itself")
    found = None if link is None else file[key]
    if not isinstance(found, h5py.Dataset):
        names = reprlib.repr(list(islice(file, 10)))
        raise ValueError(f"no dataset {key!r}; the file holds: {names[1:-1] or 'nothing'}")
    made = found.id.get_create_plist()
    if made.get_layout() == h5py.h5d.VIRTUAL or made.get_external_count():
        raise ValueError(
            f"{key} takes its data from other files, which is refused: put them into the file"
        )
    return found


def check_stored(dataset: h5py.Dataset) -> None:
    """Check that a dataset is stored in full, before memory is allocated for it.

    HDF5 reads zeros where nothing was written.

    Raises:
        ValueError: the file stores less than the dataset declares (for a compressed one: less than
            a hundredth, which could only be meant to fill the memory); it is compressed in a way
            that this HDF5 does not know.
    """
    name = dataset.name.lstrip("/")
    declared = math.prod(dataset.shape) * dataset.dtype.itemsize
    stored = min(dataset.id.get_storage_size(), dataset.file.id.get_filesize())
    if dataset.chunks is not None:
        pieces = zip(dataset.shape, dataset.chunks, strict=True)
        chunks = math.prod(-(-size // chunk) for size, chunk in pieces)
        written = dataset.id.get_num_chunks()
        if written < chunks:
            raise ValueError(f"{name} was not written in full: {written} of {chunks} chunks")
    made = dataset.id.get_create_plist()
    for number in range(made.get_nfilters()):
        code, _, _, title = made.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            title = title.decode("ascii", "replace").partition(";")[0] or f"number {code}"
            raise ValueError(
                f"{name} is compressed by the HDF5 filter {title[:MAX_NAME]!r}, which is not "
                "installed here: repack the file (h5repack -f NONE), or set HDF5_PLUGIN_PATH to "
                "the folder of this plug-in"
            )
    compressed = made.get_nfilters() > 0
    if declared > stored * (MAX_COMPRESSION if compressed else 1):
        raise ValueError(
            f"{name} declares {declared} bytes, shape {dataset.shape}, and stores {stored}"
        )


class NotTextError(ValueError):
    """A dataset is not one string."""


def read_text(file: h5py.File, key: str) -> bytes:
    """The content of a dataset that is one string, a row or column of bytes, or nothing.

    Characters of 16 bits, as MATLAB stores them, become UTF-16-LE.

    Raises:
        NotTextError: it is something else.
        ValueError: it is longer than `MAX_TEXT`, or not in the file itself.
    """
    dataset = own_dataset(file, key)
    is_string = h5py.check_string_dtype(dataset.dtype) is not None
    if is_string and not dataset.size:
        return b""  # without elements
    is_row = dataset.ndim > 0 and dataset.size == max(dataset.shape)
    is_row = is_row and dataset.dtype.kind in "iu" and dataset.dtype.itemsize <= 2
    if not is_row and not (is_string and dataset.size == 1):
        raise NotTextError(f"{key} is {dataset.dtype} {dataset.shape}, not a byte string")
    check_stored(dataset)
    size = dataset.dtype.itemsize * dataset.size
    if size > MAX_TEXT:
        raise ValueError(f"{key} has {size} bytes, more than {MAX_TEXT}")
    if is_row:
        return bytes(dataset.astype(dataset.dtype.newbyteorder("<"))[()].tobytes())
    value = dataset[()] if dataset.shape == () else dataset[(0,) * dataset.ndim]
    text = value.encode() if isinstance(value, str) else bytes(value)
    if len(text) > MAX_TEXT:
        raise ValueError(f"{key} has {len(text)} bytes, more than {MAX_TEXT}")
    return text


def name_attribute(file: h5py.File, key: str) -> str | None:
    """An attribute that is a short name, perhaps as an array of one; None if it is missing.

    Raises:
        ValueError: it is something else.
    """
    if key not in file.attrs:
        return None
    found = file.attrs.get_id(key)
    if h5py.check_string_dtype(found.dtype) is None or not _is_one(found.shape):
        raise ValueError(f"the attribute {key} is {found.dtype} {found.shape}, not a string")
    try:
        value = np.asarray(file.attrs[key]).item()
        text = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise ValueError(f"the attribute {key} is not UTF-8") from error
    return checked_name(text.strip(), f"attribute {key}")


def number_attribute(file: h5py.File, key: str) -> float | None:
    """An attribute that is one real number, perhaps as an array of one; None if it is missing.

    Raises:
        ValueError: it is something else.
    """
    if key not in file.attrs:
        return None
    found = file.attrs.get_id(key)
    if found.dtype.kind not in "fiu" or not _is_one(found.shape):
        raise ValueError(f"the attribute {key} is {found.dtype} {found.shape}, not a number")
    return float(np.asarray(file.attrs[key]).item())


def _is_one(shape: tuple[int, ...] | None) -> bool:
    """Whether it is the shape of a single value; MATLAB and R write arrays of one element."""
    return shape is not None and math.prod(shape) == 1


def checked_name(text: str, what: str) -> str:
    """The text itself, if it can be shown in tables, logs and pictures.

    Raises:
        ValueError: it has control characters or more than `MAX_NAME` characters.
    """
    if len(text) > MAX_NAME or not text.isprintable():
        raise ValueError(f"the {what} is {reprlib.repr(text)}, not a name")
    return text
