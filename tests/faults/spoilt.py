"""Faults: losses that are NaN or explode, and volumes that change during a run."""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py

from banding_removal.data.phantom.files import write_dataset
from banding_removal.runs.checkpoint import find_checkpoint, load_checkpoint
from banding_removal.runs.metrics_file import read_rows
from tests.faults.bench import Bench, Try
from tests.faults.disk import damage
from tests.faults.ends import lost_steps, same_end
from tests.faults.job import Job
from tests.faults.toy import EVERY, PHANTOM, expect

FAILURES = {
    "loss NaN": ("nan", r"^loss is nan on .*\.h5 slice \d"),
    "loss NaN in one of the processes": ("nan", r"loss is nan on .*\.h5 slice \d"),
    "loss explodes": ("explodes", "the loss explodes: from"),
}


def failing(bench: Bench) -> Iterator[Try]:
    """A loss is NaN or explodes: the run is rolled back, or ends with the cause."""
    yield from fails_once(bench)
    yield from fails_for_good(bench)


def fails_once(bench: Bench, names: Sequence[str] = tuple(FAILURES)) -> Iterator[Try]:
    """The run is rolled back and completes with lower learning rates."""
    for name in names:
        fault, words = FAILURES[name]
        if name.endswith("processes") and bench.toy.nproc == 1:
            continue
        toy = bench.fresh("failing")
        one = ",1" if name.endswith("processes") else ""
        with Job(toy, fault=f"{fault}={8 * toy.stage}{one}") as job:  # in stage 2, two in a step
            job.ends_with(0)
        event = load_checkpoint(find_checkpoint(toy.run)).events[0]
        expect(re.search(words, event["why"]) is not None, f"the event says {event['why']}")
        expect("Rollback 1 of 5" in toy.log, "the log does not say so")
        rows = [row for row in read_rows(toy.run / "metrics.jsonl") if row["kind"] == "rollback"]
        expect(len(rows) >= 1, "the metrics do not say so")
        undone = event["step"] - event["back_to"]
        expect(undone <= 2 * EVERY, f"{undone} steps were undone")
        yield Try(fault=name, lost=undone)


def fails_for_good(bench: Bench) -> Iterator[Try]:
    """After as many rollbacks as are allowed, the run ends with the cause."""
    toy = bench.fresh("failing")
    with Job(toy, "rollbacks=2", fault=f"always={8 * toy.stage}") as job:
        job.ends_with(2, r"RunFailedError: the run is failing after 2 rollbacks, at step \d+: ")
    said = [line for line in toy.log.splitlines() if "the run ended with" in line]
    expect(len(said) == 1 and "RunFailedError" in said[0], "the log does not say so")
    weights = load_checkpoint(find_checkpoint(toy.run)).predictor
    expect(all(value.isfinite().all() for value in weights.values()), "NaN was saved")
    yield Try(fault="loss NaN for good", lost=lost_steps(toy))


def _replaced(path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere"
    write_dataset(elsewhere, replace(PHANTOM, slices=5), train_volumes=3, val_volumes=1, seed=9)
    os.replace(elsewhere / path.parent.name / path.name, path)


def _made_nan(path: Path) -> None:
    """Without a change of the file's size and time."""
    times = path.stat()
    spoilt = Path(shutil.copy2(path, path.with_suffix(".spoilt")))
    with h5py.File(spoilt, "r+") as file:
        file["kspace"][:] = float("nan")
    with path.open("r+b") as content:
        content.write(spoilt.read_bytes())
    spoilt.unlink()
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


CHANGED = "the file was changed or removed after it was indexed"

CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (partial(damage, how="truncated"), CHANGED),
    "deleted": (Path.unlink, CHANGED),
    "replaced": (_replaced, CHANGED),
    "made NaN": (_made_nan, "k-space of slice . has NaN or Inf"),
}


def volume_spoilt(bench: Bench) -> Iterator[Try]:
    """A training volume is truncated, deleted, replaced or made NaN, and restored later."""
    for what, (change, words) in CHANGES.items():
        toy = bench.fresh("volume", epochs=6)
        path = sorted(toy.data.glob("multicoil_train/*.h5"))[1]
        kept = Path(shutil.copy2(path, toy.folder / "kept.h5"))
        with Job(toy) as job:
            job.wait_for_step(3)
            change(path)
            job.ends_with(2, rf"VolumeError: .*{path.name}.*{words}")
        expect(path.name in toy.log.splitlines()[-1], "the log does not name the file")
        lost = lost_steps(toy)
        shutil.copy2(kept, path)
        same_end(toy)
        yield Try(fault=f"volume {what} during the run", lost=lost)
