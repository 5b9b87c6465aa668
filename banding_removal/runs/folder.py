"""Folders of runs: each run has its own, and `logs/run` shows the newest."""

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
# Processes whose launcher was killed end some seconds after it (see `processes.watchdog`).
PATIENCE_S = 20.0


class RunLock:
    """Keeps other runs out of a folder, once taken, until the `with` block or the process ends."""

    def __init__(self) -> None:
        self._file: int | None = None

    def take(self, folder: Path, patience: float = 0.0) -> None:
        """Lock a run's folder.

        Args:
            folder: of the run.
            patience: seconds in which a process that has it may end.

        Raises:
            RunInUseError: another process has it.
        """
        self.release()
        give_up = time.monotonic() + patience
        while (file := _locked(folder)) is None:
            if time.monotonic() >= give_up:
                raise RunInUseError(f"{folder} is in use by another process, which must end first")
            time.sleep(0.2)
        self._file = file

    def renew(self, folder: Path) -> bool:
        """Make the folder that is locked again, and lock it, if it was removed or moved.

        Returns:
            Whether it was.

        Raises:
            RunInUseError: another process has made it and begun a run there.
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
        """Let others have the folder."""
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
    """The open lock file of a folder, locked; None: another process has it."""
    # The kernel drops the lock with the process, however that ends: no file tells of a run
    # that is long dead. POSIX locks are not inherited: a loading process cannot keep one.
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
    """Make <logs>/<name>, or <name>_2, <name>_3, ... where that is taken.

    Making a folder is atomic, so that two runs started together get different ones.

    Raises:
        FileExistsError: <logs>/run is no link; nothing is made.
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
    """The newest of <logs>/<name>, <name>_2, ... that holds a file matching the glob; or None."""
    numbered = {
        int(match[1] or 1): folder
        for folder in (logs.iterdir() if logs.is_dir() else ())
        if (match := re.fullmatch(re.escape(name) + r"(?:_(\d+))?", folder.name))
        and any(folder.glob(containing))
    }
    return numbered[max(numbered)] if numbered else None


def show_as_latest(folder: Path) -> None:
    """Point <logs>/run at the folder of a run, whatever it pointed at before.

    Raises:
        FileExistsError: something that is not a link is there; it is left alone.
    """
    link = folder.parent / LATEST
    _check_link(link)
    temporary = folder.parent / f".{LATEST}-{uuid.uuid4().hex}"
    temporary.symlink_to(folder.name, target_is_directory=True)
    os.replace(temporary, link)


def _check_link(link: Path) -> None:
    if link.exists() and not link.is_symlink():
        raise FileExistsError(f"{link} is not a link to a run; move it away, so that it can be one")
