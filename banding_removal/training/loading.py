"""Batches in a sampler's order, from loading processes to the device."""

import logging
import multiprocessing
import os
import time
from collections.abc import Iterator
from functools import cache, partial

import torch
from torch.utils.data import DataLoader

from banding_removal.data.batch import Batch, collate
from banding_removal.data.dataset import Draw, SliceDataset
from banding_removal.data.sampler import EpochSampler
from banding_removal.processes.signals import (
    Doing,
    StopRequest,
    ignore_signals_in_worker,
    kill_workers_at_exit,
)

log = logging.getLogger(__name__)


def make_loader(
    dataset: SliceDataset,
    sampler: EpochSampler | list[list[Draw]],
    workers: int,
    device: torch.device,
) -> DataLoader[Batch]:
    """A loader that yields `Batch`es in the sampler's order, on the CPU.

    Args:
        dataset: no file of it may be open in this process if there are workers.
        sampler: batches of draws.
        workers: loading processes; 0 loads in this process.
        device: where the batches go; for a GPU they are in page-locked memory.
    """
    if workers > 0:
        kill_workers_at_exit()
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # collate turns its Examples into Batches
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        # Batches that each worker may be ahead, wherever they are, shared or pinned: 4 workers hold
        # 8 slices, 60 MB at the paper's size.
        prefetch_factor=2 if workers > 0 else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=partial(ignore_signals_in_worker, os.getpid()),
        # A process that was itself spawned would spawn the workers, too, which takes seconds each.
        multiprocessing_context="fork" if workers > 0 else None,
        # A generator of its own: the loader draws seeds, and must not advance the global generator,
        # which dropout uses.
        generator=torch.Generator(),
    )


def batches_of(loader: DataLoader[Batch], stop: StopRequest) -> Iterator[Batch]:
    """The loader's batches.

    Args:
        loader: from `make_loader`.
        stop: where it is noted that the main thread waits for loading processes.

    Raises:
        RuntimeError: a worker was killed. PyTorch says so itself, unless the worker was handing
            over a batch at that moment.
    """
    started = getattr(loader, "_iterator", None) is not None  # its workers persist
    if loader.num_workers > 0 and not started and not _can_start(loader.num_workers):
        loader = DataLoader(
            loader.dataset,
            batch_sampler=loader.batch_sampler,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            generator=loader.generator,
        )
    loading = Doing.LOADING if loader.num_workers > 0 else Doing.WORKING
    with stop.while_doing(loading):
        batches = iter(loader)
    try:
        while True:
            with stop.while_doing(loading):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
    except (ConnectionError, EOFError) as error:
        for worker in getattr(batches, "_workers", ()):
            worker.join(1)
            if worker.exitcode is not None and worker.exitcode < 0:
                raise RuntimeError(
                    f"DataLoader worker (pid {worker.pid}) is killed by signal {-worker.exitcode}"
                ) from error
        raise


def _can_start(workers: int) -> bool:
    """Whether there is shared memory for the semaphores of a loader's queues; else, a warning."""
    context = multiprocessing.get_context("fork")
    try:
        # Three for each queue, of which there is one more than workers, and five for an event.
        semaphores = [context.Semaphore() for _ in range(3 * (workers + 1) + 5)]
    except OSError as error:
        _warn_of_shared_memory(error.strerror)
        return False
    del semaphores
    return True


@cache  # once a run, not once an epoch
def _warn_of_shared_memory(reason: str | None) -> None:
    log.warning(
        "no shared memory for loading processes (%s): slices are loaded in this process, as with "
        "workers=0. A container gets more with --shm-size=8g",
        reason,
    )


class Prefetcher:
    """The batches of each training step on the device, and how long a step takes and waits.

    Args:
        dataset: the training slices.
        sampler: the order of every epoch.
        workers: loading processes.
        device: where the batches go.
        stop: as for `batches_of`.
    """

    def __init__(
        self,
        dataset: SliceDataset,
        sampler: EpochSampler,
        workers: int,
        device: torch.device,
        stop: StopRequest,
    ) -> None:
        self._loader = make_loader(dataset, sampler, workers, device)
        self._sampler = sampler
        self._device = device
        self._stop = stop
        self._begun = 0.0
        self._waited = 0.0

    def begin(self, epoch: int, start: int) -> None:
        """Set what is iterated over: the rest of an epoch.

        Args:
            epoch: counted from 0.
            start: batches (pairs) of the epoch, of all processes, that earlier steps have taken.
        """
        self._sampler.epoch, self._sampler.start = epoch, start

    def __len__(self) -> int:
        """Steps that are left of the epoch."""
        return self._sampler.steps

    def __iter__(self) -> Iterator[Iterator[list[Batch]]]:
        """For each of these steps, its groups of batches.

        A group is one batch, or what this process takes of a pair. Batches move to the device as
        they are taken. A step has to take all of its groups.
        """
        batches = batches_of(self._loader, self._stop)
        for _ in range(len(self)):
            self._begun, self._waited = time.perf_counter(), 0.0
            yield (self._group(batches) for _ in range(self._sampler.accumulate))

    def _group(self, batches: Iterator[Batch]) -> list[Batch]:
        asked = time.perf_counter()
        taken = [next(batches) for _ in range(self._sampler.batches_per_group)]
        self._waited += time.perf_counter() - asked
        return [batch.to(self._device) for batch in taken]

    def times(self) -> dict[str, float]:
        """Milliseconds since the current step began, and how many of them were spent waiting."""
        seconds = {"step_ms": time.perf_counter() - self._begun, "wait_ms": self._waited}
        return {name: 1000 * value for name, value in seconds.items()}
