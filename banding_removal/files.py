"""Files written whole or not at all."""

import contextlib
import errno
import logging
import os
import re
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)
NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}")


@contextlib.contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Add the file's name to an OSError from the body that lacks one, such as "disk full"."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def atomic_write(path: Path, content: bytes | memoryview) -> None:
    """Write a file completely or, after any failure, leave it as it was.

    Raises:
        OSError: for example a full disk or a missing permission; no temporary file is left.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with naming_file(path), temporary.open("wb") as file:
            file.write(content)
            file.flush()
            _sync(file.fileno(), path)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _sync(file: int, path: Path) -> None:
    """Have what was written to an open file stored on the disk now, where that can be asked for."""
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
        _warn_of_sync(path.parent, error.strerror)


@cache  # once a folder
def _warn_of_sync(folder: Path, reason: str | None) -> None:
    log.warning(
        "%s is on a file system that does not say when files are stored (fsync: %s): the newest "
        "ones may be lost if the machine goes down",
        *(folder, reason),
    )


def remove_leftovers(run_folder: Path) -> None:
    """Delete what `atomic_write` left in a killed process. No process may be writing now."""
    found = [path for path in run_folder.rglob(".*") if _TEMPORARY.fullmatch(path.name)]
    for path in found:
        path.unlink()
    if found:
        names = ", ".join(sorted({path.name.rpartition(".")[0][1:] for path in found}))
        log.info("removed %d half-written file(s) of a killed process: %s", len(found), names)
