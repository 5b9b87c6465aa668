"""Folders of runs: each run has its own, and the link `logs/run` points to the newest.

Where a file system has no links, `logs/run` is a text file with the name of the newest run's
folder; `in_latest` follows either. Where it has no locks, runs go on without.
"""

import errno
import fcntl
import logging
import os
import re
import time
import uuid
from functools import cache
from itertools import count
from pathlib import Path
from types import TracebackType

from banding_removal.errors import RunInUseError
from banding_removal.files import atomic_write

log = logging.getLogger(__name__)

LATEST = "run"
LOCK = ".lock"
# Processes whose launcher was killed end some seconds after it: see `processes.watchdog`.
PATIENCE_S = 20.0
# Of lockf. On Linux, a file that another process has locked gives EAGAIN, never EACCES.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EACCES, errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL)
LONGEST_NAME = 1000  # of a folder, in the text file that stands for a link


class LocksUnavailableError(Exception):
    """The file system has no locks."""


class RunLock:
    """Keeps other runs out of a folder, from `take` until the `with` block or the process ends.

    Where the file system has no locks, it warns and keeps nobody out: `is_enforced` is false.
    """

    def __init__(self) -> None:
        self._file: int | None = None
        self.is_enforced = True

    @property
    def held(self) -> bool:
        """Whether a folder is locked."""
        return self._file is not None

    def take(self, folder: Path, patience: float = 0.0) -> None:
        """Lock a run's folder.

        Args:
            folder: must exist.
            patience: seconds to wait for another process to release it.

        Raises:
            RunInUseError: another process holds it.
        """
        self.release()
        give_up = time.monotonic() + patience
        # The kernel releases the lock when the process ends, in whatever way. POSIX locks are not
        # inherited, so that data loading workers cannot hold one.
        self._file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            while not lock_file(self._file, fcntl.LOCK_EX):
                if time.monotonic() >= give_up:
                    self.release()
                    raise RunInUseError(
                        f"{folder} is in use by another process, which must end first"
                    )
                time.sleep(0.2)
        except LocksUnavailableError as error:
            self.is_enforced = False
            log.warning(
                "%s is on a file system without locks (%s): a second run in this folder would not "
                "be noticed",
                *(folder, error),
            )

    def renew(self, folder: Path) -> bool:
        """If the locked folder was removed or moved, create it again and lock the new one.

        Without this, a run that is started in the meantime would make a folder of the same name,
        and both would write their checkpoints there.

        Returns:
            Whether it was removed or moved.

        Raises:
            RunInUseError: another process has begun a run in a new folder of that name.
        """
        if self._file is None:
            return False
        try:
            same = os.path.samestat(os.fstat(self._file), (folder / LOCK).stat())
        except FileNotFoundError:
            same = False
        if same:
            return False
        folder.mkdir(parents=True, exist_ok=True)
        self.take(folder)
        return True

    def release(self) -> None:
        """Unlock the folder."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def lock_file(file: int, kind: int) -> bool:
    """Lock an open file, without waiting.

    Args:
        file: its descriptor.
        kind: `fcntl.LOCK_EX` or `fcntl.LOCK_SH`.

    Returns:
        False if another process has locked it.

    Raises:
        LocksUnavailableError: the file system has no locks.
    """
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise LocksUnavailableError(error.strerror) from error
        raise
    return True


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
