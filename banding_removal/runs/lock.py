"""The lock on a run's folder, which keeps other runs out of it.

Where a file system has no locks, runs go on without.
"""

import errno
import fcntl
import logging
import os
import time
from pathlib import Path
from types import TracebackType

from banding_removal.errors import RunInUseError

log = logging.getLogger(__name__)

LOCK = ".lock"
# Processes whose launcher was killed end some seconds after it: see `processes.watchdog`.
PATIENCE_S = 20.0
# Of lockf. On Linux, a file that another process has locked gives EAGAIN, never EACCES.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EACCES, errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL)


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
