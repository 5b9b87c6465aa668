"""Loading slices: time per real-size slice, through the loader, and memory over many reads.

    python -m benchmarks.data_loading
    python -m benchmarks.data_loading step=0.1       (workers needed for steps of so many seconds)
    python -m benchmarks.data_loading reads=20000    (reads of the memory test; 0: no test)
    python -m benchmarks.data_loading 'workers=[1,2,4,8]' reads=0 out=loader.jsonl

The files are in the page cache, so that the disk is not measured.
"""

import json
import math
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import torch

from banding_removal.command_line import user_errors
from banding_removal.config.overrides import from_words
from banding_removal.data.batch import Batch, collate
from banding_removal.data.dataset import Draw, SliceDataset
from banding_removal.data.handle_cache import CAPACITY
from banding_removal.data.index import index_folder
from banding_removal.data.masks import MaskSampler
from banding_removal.data.phantom.files import write_dataset
from banding_removal.data.phantom.spec import DEMO, REAL_SIZE, PhantomSpec
from banding_removal.errors import ConfigError
from banding_removal.runs.build import choose_device
from banding_removal.training.loading import make_loader

MASKS = MaskSampler(kind="magic", accelerations=(4,), acs=(16,))
ORIENTATIONS = {"upright": False, "transposed": True}
WARM_UP = 8  # slices before the clock starts, more than the loader reads ahead


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Settings of the benchmark."""

    step: float = 0.1  # seconds of a GPU for a step of one slice
    slices: int = 100  # slices in each pass through a loader
    passes: int = 5
    reads: int = 20_000  # reads of the memory test
    workers: tuple[int, ...] = (0, 1, 2)  # loading processes
    out: Path | None = None  # JSON lines are added: a rate each

    def __post_init__(self) -> None:
        if 1 not in self.workers:
            raise ConfigError("workers needs a 1: the prediction is made from it")


def resident_mb() -> float:
    """Resident memory of this process, MB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def make(folder: Path, spec: PhantomSpec, volumes: int, rotate: float) -> SliceDataset:
    """A phantom data set of `volumes` volumes, whose masks are drawn as in training."""
    write_dataset(folder, spec, train_volumes=volumes, val_volumes=0, seed=0)
    found = index_folder(folder / "multicoil_train", cache_folder=folder / "index")
    return SliceDataset(found, MASKS, seed=0, rotate_probability=rotate, redraw_masks=True)


def row(name: str, act: Callable[[int], object], times: int = 60) -> None:
    """Print how many milliseconds `act(0)`, `act(1)`, ... take."""
    took = []
    for i in range(times):
        start = time.perf_counter()
        act(i)
        took.append(1000 * (time.perf_counter() - start))
    low, high = np.percentile(took, (10, 90))
    print(f"  {name:42} {statistics.median(took):6.1f}  ({low:.1f} - {high:.1f})")


def time_slices(dataset: SliceDataset) -> None:
    """Time each stage of a 15 x 640 x 368 slice in this process."""
    print("\n15 coils, 640 x 368, target 320 x 320; ms per slice, median (10th - 90th percentile)")
    path = Path(dataset.volumes[0].path)
    with h5py.File(path, "r", locking=False) as file:
        row("h5py read alone", lambda i: file["kspace"][i % len(dataset)])
        packed = path.with_suffix(".gzip")
        with h5py.File(packed, "w") as other:
            chunks = (1, 1, *file["kspace"].shape[2:])
            other.create_dataset("kspace", data=file["kspace"], chunks=chunks, compression="gzip")
    with h5py.File(packed, "r", locking=False) as file:
        row("  the same from a gzip file", lambda i: file["kspace"][i % len(dataset)], times=8)
    packed.unlink()
    for name, rotated in ORIENTATIONS.items():
        time_example(name, dataset, rotated)


def time_example(name: str, dataset: SliceDataset, rotated: bool) -> None:
    """Time an example (read, check, mask), its batch, and its k-space with zeros."""

    def draw(i: int) -> Draw:
        return Draw(epoch=i, index=i % len(dataset), rotated=rotated)

    row(f"example, {name}", lambda i: dataset[draw(i)])
    example = dataset[draw(0)]
    row("  batch of it", lambda _: collate([example]))
    row("  its k-space with all zeros, on the CPU", lambda _: example.masked_kspace)


def receive(batch: Batch, device: torch.device) -> None:
    """On a GPU, build k-space; on a CPU, read every number once, as pinning memory would."""
    if device.type == "cuda":
        batch.to(device).masked_kspace.sum().item()
    else:
        batch.measured.sum()


def cpu_seconds(who: int) -> float:
    """User and system time so far, of RUSAGE_SELF or of finished children (RUSAGE_CHILDREN)."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def time_loader(dataset: SliceDataset, settings: Timing) -> float:
    """Print slices/s through the training loader.

    Returns:
        Milliseconds of one worker for a slice, in the slower orientation.
    """
    device = choose_device("auto")
    print(
        f"\nthrough the loader, received on the {device.type}: slices/s, median of "
        f"{settings.passes} passes of {settings.slices} slices (lowest - highest);\n"
        f"ms of a worker for a slice by the clock, and CPU ms in the workers and in this process"
    )
    slowest = 0.0
    for name, rotated in ORIENTATIONS.items():
        draws = [
            [Draw(epoch=i, index=i % len(dataset), rotated=rotated)]
            for i in range(settings.slices + WARM_UP)
        ]
        for workers in settings.workers:
            loader = make_loader(dataset, draws, workers, device)
            here, there = (cpu_seconds(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
            rates = []
            for _ in range(settings.passes):
                for i, batch in enumerate(loader):
                    receive(batch, device)
                    if i == WARM_UP - 1:
                        start = time.perf_counter()
                rates.append(settings.slices / (time.perf_counter() - start))
            del loader  # ends its workers, whose time then counts as that of children
            count = settings.passes * len(draws)
            here = 1000 * (cpu_seconds(resource.RUSAGE_SELF) - here) / count
            there = 1000 * (cpu_seconds(resource.RUSAGE_CHILDREN) - there) / count
            rate = statistics.median(rates)
            of_worker = 1000 * max(1, workers) / rate
            print(
                f"  {name:10}  workers={workers} {rate:6.1f}  ({min(rates):.1f} - {max(rates):.1f})"
                f"{of_worker:8.1f} ms{there:8.1f} +{here:5.1f} ms CPU"
            )
            if workers == 1:
                slowest = max(slowest, of_worker)
            if settings.out is not None:
                found = {"orientation": name, "workers": workers, "slices_per_s": rates}
                where = {"device": device.type, "cores": os.cpu_count(), "torch": torch.__version__}
                with settings.out.open("a") as file:
                    file.write(json.dumps(found | where) + "\n")
    return slowest


def predict(milliseconds: float, settings: Timing) -> None:
    """Print how many workers GPUs need: predicted from one worker's speed, not measured."""
    needed = math.ceil(milliseconds / (1000 * settings.step))
    print(
        f"\npredicted from {milliseconds:.1f} ms per slice of one worker, with a core for each:"
        f"\n  steps of one slice in {settings.step:g} s need {needed} worker(s) per GPU"
        f"\n  8 GPUs with 4 workers each (32 cores) are fed {8 * 4000 / milliseconds:.0f} slices/s:"
        f" steps of one slice down to {milliseconds / 4:.1f} ms"
    )


def memory_over_reads(folder: Path, reads: int) -> None:
    """Print resident memory over many reads of more files than are kept open."""
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
    """Print all tables."""
    with user_errors():
        settings = from_words(Timing(), sys.argv[1:])
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "This DataLoader will create")  # fewer cores than workers
    with tempfile.TemporaryDirectory() as folder:
        dataset = make(Path(folder) / "real", replace(REAL_SIZE, slices=8), volumes=1, rotate=0.0)
        time_slices(dataset)
        dataset.close()  # no file is open when the loaders fork
        predict(time_loader(dataset, settings), settings)
        if settings.reads:
            memory_over_reads(Path(folder) / "small", settings.reads)


if __name__ == "__main__":
    main()
