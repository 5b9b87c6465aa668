"""Loading slices: time per real-size slice, and memory over many reads.

    python benchmarks/data_loading.py
    python benchmarks/data_loading.py 20000        (number of reads of the memory test)

One process, files in the page cache: what is measured is this project's work, not the disk.
"""

import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from data.dataset import Draw, SliceDataset
from data.handles import CAPACITY
from data.index import index_folder
from data.masks import MaskSampler
from data.phantom import DEMO, REAL_SIZE, PhantomSpec
from data.phantom_files import write_dataset

MASKS = MaskSampler(kind="magic", accelerations=(4,), acs=(16,))


def resident_mb() -> float:
    """Memory of this process that is in RAM, MB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def make(folder: Path, spec: PhantomSpec, volumes: int, rotate: float) -> SliceDataset:
    """A phantom data set of `volumes` volumes, with every example drawn as in training."""
    write_dataset(folder, spec, train_volumes=volumes, val_volumes=0, seed=0)
    found = index_folder(folder / "multicoil_train", cache_folder=folder / "index")
    return SliceDataset(found, MASKS, seed=0, rotate_probability=rotate, redraw_masks=True)


def time_real_size(folder: Path, reads: int = 60) -> None:
    """Median milliseconds for read + check + transpose + mask of a 15 x 640 x 368 slice."""
    dataset = make(folder, replace(REAL_SIZE, slices=8), volumes=1, rotate=0.0)
    print("\n15 coils, 640 x 368, target 320 x 320; ms per slice, median (10th - 90th percentile)")
    for name, source in (("upright", dataset), ("transposed", dataset.with_rotation(1.0))):
        times = []
        for i in range(reads):
            start = time.perf_counter()
            source[Draw(epoch=i, index=i % len(source))]
            times.append(1000 * (time.perf_counter() - start))
        low, high = np.percentile(times, (10, 90))
        print(f"  {name:24} {statistics.median(times):6.1f}  ({low:.1f} - {high:.1f})")
    times = []
    for i in range(reads):
        start = time.perf_counter()
        with h5py.File(dataset.volumes[0].path, "r", locking=False) as file:
            file["kspace"][i % len(dataset)]
        times.append(1000 * (time.perf_counter() - start))
    print(f"  {'h5py read alone':24} {statistics.median(times):6.1f}")


def memory_over_reads(folder: Path, reads: int) -> None:
    """Resident memory over many reads, with more files than handles are kept open."""
    spec = replace(DEMO, kspace_size=(64, 64), target_size=(64, 64), acquired=(2, 62), slices=4)
    dataset = make(folder, spec, volumes=3 * CAPACITY, rotate=0.5)
    order = np.random.default_rng(0)
    print(f"\n{reads} reads of random slices of {3 * CAPACITY} files, {CAPACITY} handles kept open")
    warm_up = reads // 20
    before = 0.0
    for i in range(reads + 1):
        if i == warm_up:
            before = resident_mb()
        if (i >= warm_up and i % (reads // 5) == 0) or i == warm_up:
            print(f"  after {i:6} reads: {resident_mb():7.1f} MB ({resident_mb() - before:+.2f})")
        dataset[Draw(epoch=i, index=int(order.integers(len(dataset))))]


def main() -> None:
    """Print both tables."""
    reads = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    with tempfile.TemporaryDirectory() as folder:
        time_real_size(Path(folder) / "real")
        memory_over_reads(Path(folder) / "small", reads)


if __name__ == "__main__":
    main()
