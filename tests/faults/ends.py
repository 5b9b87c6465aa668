"""Whether a run with a fault ends like one without: its weights, metrics and files."""

import shutil
import zlib
from dataclasses import replace

import torch

from banding_removal.data.phantom.files import write_dataset
from banding_removal.runs.checkpoint import find_checkpoint, load_checkpoint
from banding_removal.runs.metrics_file import read_rows
from tests.faults.job import Job
from tests.faults.toy import EVERY, PHANTOM, Toy, expect


def prepare(toy: Toy) -> Toy:
    """Make the data and, for stage 2, a pretrained predictor."""
    toy.folder.mkdir(parents=True, exist_ok=True)
    spec = replace(PHANTOM, slices=toy.slices)
    write_dataset(toy.data, spec, train_volumes=3, val_volumes=1, seed=0)
    pretrained = toy.logs / "pretrain_dev"
    if toy.stage == 2 and not pretrained.exists():
        # The same for all toys with such data: made once.
        folder = toy.folder.parent.parent / f"pretrained-{toy.slices}"
        first = replace(toy, folder=folder, stage=1, nproc=1, words=("epochs=1",))
        if not (folder / "complete").exists():
            complete(prepare(first))
            (folder / "complete").touch()
        shutil.copytree(first.run, pretrained)
    return toy


def complete(toy: Toy, *words: str) -> None:
    """Start a run, or go on with it, and wait until it is complete.

    Raises:
        FaultError: it did not complete.
    """
    with Job(toy, *words) as job:
        job.ends_with(0)
    expect("the run is complete" in toy.log.splitlines()[-1], f"log ends with {toy.log[-300:]}")


def unharmed(toy: Toy) -> Toy:
    """The same run without a fault, complete; made once, two folders up."""
    words = zlib.crc32(f"{toy.slices} {toy.words}".encode())
    place = toy.folder.parent.parent / f"unharmed-{toy.stage}-{toy.nproc}-{words:08x}"
    other = replace(toy, folder=place)
    if not (place / "complete").exists():
        shutil.rmtree(place, ignore_errors=True)
        complete(prepare(other))
        (place / "complete").touch()
    return other


def expect_same_end(toy: Toy, other: Toy) -> None:
    """Check that two complete runs have the same weights, bit for bit, and the same steps.

    Raises:
        FaultError: something differs.
    """
    a, b = (load_checkpoint(find_checkpoint(one.run)) for one in (toy, other))
    expect(a.step == b.step, f"{a.step} steps and not {b.step}")
    for mine, its in ((a.predictor, b.predictor), (a.adversary or {}, b.adversary or {})):
        expect(mine.keys() == its.keys(), "other weights")
        for key, value in mine.items():
            expect(torch.equal(value, its[key]), f"{key} differs")
    steps = [row["step"] for row in read_rows(toy.run / "metrics.jsonl") if row["kind"] == "train"]
    expect(steps == [*range(1, a.step + 1)], f"metrics of steps {steps}")
    left = [path.name for path in toy.run.rglob(".*") if path.name != ".lock"]
    expect(not left, f"left behind: {left}")


def same_end(toy: Toy) -> None:
    """Let a run complete after a fault, and check that it ends as one without a fault.

    Raises:
        FaultError: it does not complete, or something differs.
    """
    complete(toy)
    expect_same_end(toy, unharmed(toy))


def lost_steps(toy: Toy, made: int = 0, limit: int = EVERY) -> int:
    """Number of steps, from the metrics or `made`, beyond the newest intact checkpoint.

    Raises:
        FaultError: it is above the limit.
    """
    lost = max(0, made, toy.step()) - toy.saved()
    expect(lost <= limit, f"{lost} steps are lost")
    return max(0, lost)
