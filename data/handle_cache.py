"""A small cache of open HDF5 files; in a forked process or unpickled, it is empty."""

import os
from collections import OrderedDict
from typing import Any

import h5py

from banding_removal.data.hdf5 import open_file

CAPACITY = 16  # open files


class HandleCache:
    """Least-recently-used cache of files opened for reading.

    A handle must not cross into another process, where it may read wrong bytes. So a forked child
    starts with an empty cache, and pickling leaves the handles out.
    """

    def __init__(self) -> None:
        self._files: OrderedDict[str, h5py.File] = OrderedDict()
        self._pid = os.getpid()

    def open(self, path: str) -> h5py.File:
        """The file, opened if it is not in the cache.

        Raises:
            OSError: as `open_file`.
        """
        if self._pid != os.getpid():
            self._files, self._pid = OrderedDict(), os.getpid()
        if path in self._files:
            self._files.move_to_end(path)
            return self._files[path]
        file = open_file(path)
        self._files[path] = file
        while len(self._files) > CAPACITY:
            self._files.popitem(last=False)[1].close()
        return file

    def close(self) -> None:
        """Close the files that this process opened, for instance before it forks."""
        if self._pid == os.getpid():
            while self._files:
                self._files.popitem()[1].close()

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": OrderedDict(), "_pid": -1}
