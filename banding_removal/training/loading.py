"""Loaders: batches in a sampler's order, from loading processes."""

import os
from collections.abc import Iterator
from functools import partial

import torch
from torch.utils.data import DataLoader

from banding_removal.data.batch import Batch, collate
from banding_removal.data.dataset import Draw, SliceDataset
from banding_removal.data.sampler import EpochSampler
from banding_removal.processes.signals import ignore_signals_in_worker, kill_workers_at_exit


def make_loader(
    dataset: SliceDataset,
    sampler: EpochSampler | list[list[Draw]],
    workers: int,
    device: torch.device,
) -> DataLoader[Batch]:
    """A loader that yields `Batch`es in the sampler's order."""
    if workers > 0:
        kill_workers_at_exit()
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # collate turns its Examples into Batches
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        # Batches that each worker may be ahead, wherever they are, shared or pinned: 4 workers hold
        # 8 slices, 60 MB of the paper's size.
        prefetch_factor=2 if workers > 0 else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=partial(ignore_signals_in_worker, os.getpid()),
        # A process that was itself spawned would spawn these, too, which takes seconds each.
        multiprocessing_context="fork" if workers > 0 else None,
        # Its own generator: the loader draws seeds, and must not move the one that dropout uses.
        generator=torch.Generator(),
    )


def batches_of(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """The loader's batches.

    Raises:
        RuntimeError: a loading process was killed. PyTorch says so by itself, unless the process
            was just handing over a batch.
    """
    batches = iter(loader)
    try:
        yield from batches
    except (ConnectionError, EOFError) as error:
        for worker in getattr(batches, "_workers", ()):
            worker.join(1)
            if worker.exitcode is not None and worker.exitcode < 0:
                raise RuntimeError(
                    f"DataLoader worker (pid {worker.pid}) is killed by signal {-worker.exitcode}"
                ) from error
        raise
