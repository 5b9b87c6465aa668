"""Folders of runs: each run has its own, and the link `logs/run` points to the newest."""

import fcntl
import os
import re
import time
import uuid
from itertools import count
from pathlib import Path
from types import TracebackType

from banding_removal.errors import RunInUseError

LATEST = "run"
LOCK = ".lock"
# Processes whose launcher was killed end some seconds after it: see `processes.watchdog`.
PATIENCE_S = 20.0


class RunLock:
    """Keeps other runs out of a folder, from `take` until the `with` block or the process ends."""

    def __init__(self) -> None:
        self._file: int | None = None

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
        while (file := _locked(folder)) is None:
            if time.monotonic() >= give_up:
                raise RunInUseError(f"{folder} is in use by another process, which must end first")
            time.sleep(0.2)
        self._file = file

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


def _locked(folder: Path) -> int | None:
    """The file descriptor of a folder's lock file, locked; None: another process holds the lock."""
    # The kernel releases the lock when the process ends, in whatever way. POSIX locks are not
    # inherited, so that data loading workers cannot hold one.
    file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        if isinstance(error, BlockingIOError | PermissionError):
            return None
        raise
    return file


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
    """Point the link <logs>/run at the folder of a run.

    Raises:
        FileExistsError: <logs>/run is not a link; it is left as it is.
    """
    link = folder.parent / LATEST
    _check_link(link)
    temporary = folder.parent / f".{LATEST}-{uuid.uuid4().hex}"
    temporary.symlink_to(folder.name, target_is_directory=True)
    os.replace(temporary, link)


def _check_link(link: Path) -> None:
    if link.exists() and not link.is_symlink():
        raise FileExistsError(f"{link} is not a link to a run; move it away to make room for one")
