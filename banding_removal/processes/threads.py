"""How many threads a process computes with on a CPU."""

import os

import torch

# Up to this many pixels of k-space, a second thread gains little where nothing else runs; where
# something does, each operation waits for the thread that has no core (benchmarks/threads.py).
SMALL_IMAGE = 192 * 192


def set_threads(pixels: int, *, count: int | None = None, processes: int = 1) -> int:
    """Set the number of threads of this process, and return it.

    Args:
        pixels: of the largest slice's k-space, H x W.
        count: the number; None: that of OMP_NUM_THREADS if it is set; otherwise 1 for small images,
            and this process's share of the cores for larger ones.
        processes: that share the cores of this machine.
    """
    if count is None and "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    if count is None:
        cores = len(os.sched_getaffinity(0))
        count = 1 if pixels <= SMALL_IMAGE else max(1, cores // processes)
    torch.set_num_threads(count)
    return count
