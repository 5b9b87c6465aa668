"""How many threads a process computes with on a CPU."""

import os
from collections.abc import Iterable

import torch

from banding_removal.data.volume import Volume

# Up to this many pixels of k-space (H x W), one thread: at 128 x 128, a second one gains little. If
# anything else runs, every operation waits for the thread that has no core. 192 lies between that
# size and the paper's, where threads pay, and was not measured itself (benchmarks/processes.py).
SMALL_IMAGE = 192 * 192


def set_threads(volumes: Iterable[Volume], *, count: int | None = None, processes: int = 1) -> int:
    """Set the number of threads of this process, and return it.

    Args:
        volumes: what it will compute with.
        count: the number; None: that of OMP_NUM_THREADS if it is set; otherwise 1 for small images,
            and this process's share of the cores for larger ones.
        processes: that share the cores of this machine.
    """
    if count is None and "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    if count is None:
        cores = len(os.sched_getaffinity(0))
        largest = max((volume.height * volume.width for volume in volumes), default=0)
        count = 1 if largest <= SMALL_IMAGE else max(1, cores // processes)
    torch.set_num_threads(count)
    return count
