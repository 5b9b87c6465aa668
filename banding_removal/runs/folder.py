"""Folders of runs: each run has its own, and the link `logs/run` points to the newest.

Where a file system has no links, `logs/run` is a text file with the name of the newest run's
folder; `in_latest` follows either.
"""

import logging
import os
import re
import uuid
from functools import cache
from itertools import count
from pathlib import Path

from banding_removal.files import atomic_write

log = logging.getLogger(__name__)

LATEST = "run"
LONGEST_NAME = 1000  # of a folder, in the text file that stands for a link


def new_run_folder(logs: Path, name: str) -> Path:
    """Create <logs>/<name>, or <name>_2, <name>_3, ... if that exists.

    Creating a folder is atomic, so that two runs started together get different ones.

    Raises:
        FileExistsError: <logs>/run is not a link; nothing is created.
    """
    logs.mkdir(parents=True, exist_ok=True)
    _check_link(logs / LATEST)
    for number in count(1):
        folder = logs / (name if number == 1 else f"{name}_{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("unreachable")


def latest_run(logs: Path, name: str, *, containing: str = "*") -> Path | None:
    """The newest of <logs>/<name>, <name>_2, ... with a file that matches the glob, if any."""
    numbered = {
        int(match[1] or 1): folder
        for folder in (logs.iterdir() if logs.is_dir() else ())
        if (match := re.fullmatch(re.escape(name) + r"(?:_(\d+))?", folder.name))
        and any(folder.glob(containing))
    }
    return numbered[max(numbered)] if numbered else None


def show_as_latest(folder: Path) -> None:
    """Point the link <logs>/run at the folder of a run, or the text file in place of a link.

    Raises:
        FileExistsError: <logs>/run is neither; it is left as it is.
    """
    link = folder.parent / LATEST
    _check_link(link)
    temporary = folder.parent / f".{LATEST}-{uuid.uuid4().hex}"
    try:
        temporary.symlink_to(folder.name, target_is_directory=True)
    except OSError as error:
        # EPERM, EOPNOTSUPP, ENOSYS or others; if nothing can be written here, this fails, too.
        atomic_write(link, f"{folder.name}\n".encode())
        _warn_of_links(link, error.strerror)
        return
    os.replace(temporary, link)


@cache  # once a process
def _warn_of_links(link: Path, reason: str | None) -> None:
    log.warning("%s cannot be a link (%s): it is a text file that names the run", link, reason)


def in_latest(path: Path) -> Path:
    """A path in which <logs>/run stands for the newest run's folder, whether link or text file."""
    for part in (path, *path.parents):
        name = _named_in(part) if part.name == LATEST else None
        if name is not None:
            return part.parent / name / path.relative_to(part)
    return path


def _named_in(file: Path) -> str | None:
    """The folder that is named by a text file in place of a link; None: it is another file."""
    if not file.is_file() or file.stat().st_size > LONGEST_NAME:
        return None
    name = file.read_text(encoding="utf-8", errors="replace").removesuffix("\n")
    plain = name not in ("", ".", "..", LATEST) and Path(name).name == name and name.isprintable()
    return name if plain else None


def _check_link(link: Path) -> None:
    if link.exists() and not link.is_symlink() and _named_in(link) is None:
        raise FileExistsError(f"{link} is not a link to a run; move it away to make room for one")
