"""HDF5 files from anywhere: opened and read so that only what they hold themselves is read.

A file can name other files to read from (external links, external storage, virtual datasets), can
declare more than it stores, and can hold any type under any name. What is read here is checked
first, and a problem is a ValueError or one of `READ_ERRORS`, for the caller to name the file with.
"""

import math
import reprlib
import stat
from itertools import islice
from pathlib import Path

import h5py

# h5py and numpy report damage below the first bytes, and sizes that cannot be, as any of these.
READ_ERRORS = (
    *(OSError, KeyError, IndexError, TypeError, ValueError, RuntimeError),
    *(OverflowError, MemoryError, SystemError),
)
MOST_COMPRESSION = 100  # times that a dataset may be larger than what is stored of it
LONGEST_TEXT = 1 << 20  # bytes; headers of scanners have some ten thousand
LONGEST_NAME = 100  # characters


def open_file(path: Path | str) -> h5py.File:
    """A file, open for reading.

    Raises:
        OSError: there is none, or it is not a regular file (a pipe would be waited for), or no
            HDF5 file.
    """
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise OSError("it is not a regular file")
    # Without locking: many processes read the same volumes, and some cluster file systems have no
    # locks at all.
    return h5py.File(path, "r", locking=False)


def holds(file: h5py.File, key: str) -> bool:
    """Whether there is anything of that name; links are not followed."""
    return bool(file.id.links.exists(key.encode()))


def own_dataset(file: h5py.File, key: str) -> h5py.Dataset:
    """A dataset whose data are in the file itself.

    Raises:
        ValueError: there is none, or it is elsewhere: behind a soft or an external link, in another
            file, or put together from other datasets.
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
    """Make sure that the data are there in full, before memory is taken for them.

    HDF5 reads zeros where nothing was ever written.

    Raises:
        ValueError: the file stores less than the dataset declares, or it was compressed so well
            that it is made to fill the memory.
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
    compressed = dataset.id.get_create_plist().get_nfilters() > 0
    if declared > stored * (MOST_COMPRESSION if compressed else 1):
        raise ValueError(
            f"{name} declares {declared} bytes, shape {dataset.shape}, and stores {stored}"
        )


def read_text(file: h5py.File, key: str) -> bytes:
    """A dataset that is one string.

    Raises:
        ValueError: it is something else, or very long.
    """
    dataset = own_dataset(file, key)
    if h5py.check_string_dtype(dataset.dtype) is None or dataset.size != 1:
        raise ValueError(f"{key} is {dataset.dtype} {dataset.shape}, not a byte string")
    check_stored(dataset)
    if dataset.dtype.itemsize > LONGEST_TEXT:
        raise ValueError(f"{key} has {dataset.dtype.itemsize} bytes, more than {LONGEST_TEXT}")
    value = dataset[()] if dataset.shape == () else dataset[(0,) * dataset.ndim]
    text = value.encode() if isinstance(value, str) else bytes(value)
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"{key} has {len(text)} bytes, more than {LONGEST_TEXT}")
    return text


def name_attribute(file: h5py.File, key: str) -> str | None:
    """An attribute that is a short name; None: there is none.

    Raises:
        ValueError: it is something else.
    """
    if key not in file.attrs:
        return None
    found = file.attrs.get_id(key)
    if h5py.check_string_dtype(found.dtype) is None or found.shape != ():
        raise ValueError(f"the attribute {key} is {found.dtype} {found.shape}, not a string")
    value = file.attrs[key]
    return checked_name(value.decode() if isinstance(value, bytes) else value, f"attribute {key}")


def number_attribute(file: h5py.File, key: str) -> float | None:
    """An attribute that is one real number; None: there is none.

    Raises:
        ValueError: it is something else.
    """
    if key not in file.attrs:
        return None
    found = file.attrs.get_id(key)
    if found.dtype.kind not in "fiu" or found.shape != ():
        raise ValueError(f"the attribute {key} is {found.dtype} {found.shape}, not a number")
    return float(file.attrs[key])


def checked_name(text: str, what: str) -> str:
    """A name that goes into tables, logs and pictures, as it is.

    Raises:
        ValueError: it has line ends, control characters or too many characters.
    """
    if len(text) > LONGEST_NAME or not text.isprintable():
        raise ValueError(f"the {what} is {reprlib.repr(text)}, not a name")
    return text
