"""How many processes and threads compute on a CPU."""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from banding_removal.config.settings import Settings
from banding_removal.data.volume import Volume
from banding_removal.processes.place import place_in

# Up to this many pixels of k-space (H x W), one thread: at 128 x 128, a second one gains little. If
# anything else runs, every operation waits for the thread that has no core. 192 lies between that
# size and the paper's, where threads pay, and was not measured itself (benchmarks/processes.py).
SMALL_IMAGE = 192 * 192
# Where Linux tells a container how much time of its cores it gets, in two versions.
CGROUP = Path("/sys/fs/cgroup")


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
        cores = usable_cores()
        largest = max((volume.height * volume.width for volume in volumes), default=0)
        count = 1 if largest <= SMALL_IMAGE else max(1, cores // processes)
    torch.set_num_threads(count)
    return count


def usable_cores() -> int:
    """How many cores this process may use: those it may run on, as far as a container has time."""
    has_affinity = hasattr(os, "sched_getaffinity")  # macOS has none
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = (
                (CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
            )
        except OSError:
            return cores
    limit = float(quota) / float(period) if quota != "max" else cores
    return max(1, min(cores, int(limit))) if limit > 0 else cores


def split_on_cores(settings: Settings) -> Settings:
    """On a CPU, a process for each orientation of a pair: the same steps on two cores.

    Without pairs, on one core or on a GPU, it is one process. What `nproc` says is kept, as is the
    number of processes that torchrun or a scheduler has started.
    """
    started = "WORLD_SIZE" in os.environ or place_in(os.environ) is not None
    if settings.nproc is not None or started:
        return settings
    has_gpu = settings.device == "auto" and torch.cuda.is_available()
    on_cpu = settings.device in ("auto", "cpu") and not has_gpu
    if not (settings.paired and on_cpu and usable_cores() > 1):
        return replace(settings, nproc=1)
    print("two processes on the CPU, one for each orientation of a slice; nproc=1 keeps one")  # noqa: T201
    return replace(settings, nproc=2, split_pairs=True)
