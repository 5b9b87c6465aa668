"""What training runs survive, tried out: fault | times tried | survived | lost.

    make faults
    python -m tests.faults.faults
    python -m tests.faults.faults 'kinds=[killed,disk_full]' kills=10
    python -m tests.faults.faults again=true

Toy runs of both stages, in one process and in two, are killed, stopped, starved of disk and
damaged, and then started again by the same command. A try is survived if the run went on, or ended
with the cause named, as the fault allows; lost at most `checkpoint_every` steps; left no process
behind; and ended with the weights, bit for bit, of the run that nothing was done to. Rows are
written as they come, and a benchmark that was interrupted goes on with the faults that are left.
"""

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random

import h5py
import torch

from banding_removal.command_line import user_errors
from banding_removal.config.settings import REPOSITORY, from_words
from banding_removal.data.phantom.files import write_dataset
from banding_removal.errors import ConfigError
from banding_removal.runs.checkpoint import find_checkpoint, list_checkpoints, load_checkpoint
from banding_removal.runs.log import read_rows
from tests.faults.driver import PAUSED
from tests.faults.runs import (
    EVERY,
    PHANTOM,
    FaultError,
    Job,
    SmallDisk,
    Toy,
    complete,
    damage,
    expect,
    expect_same_end,
    process_figures,
    same_end,
    slope,
    unharmed,
    write_row,
)

ENDS_WITHIN_S = 120.0  # a job of which a process is lost: 15 s unheard of, 30 s to end the others


@dataclass(frozen=True, kw_only=True)
class Faults:
    """How much is tried."""

    folder: Path = REPOSITORY / "logs" / "faults"
    kinds: tuple[str, ...] = ()  # none: all
    stages: tuple[int, ...] = (1, 2)
    processes: tuple[int, ...] = (1, 2)
    kills: int = 50  # at random moments of each run
    epochs: int = 8  # of that run, which must not end before them
    slices: int = 12  # of each of its volumes
    steps: int = 20_000  # of the soak
    seed: int = 0
    again: bool = False  # try out once more what was

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown:
            raise ConfigError(f"{', '.join(unknown)}: none of {', '.join(KINDS)}")


@dataclass(frozen=True, kw_only=True)
class Try:
    """One fault, done once."""

    fault: str
    lost: int = 0  # steps
    note: str = ""
    survived: bool = True


@dataclass(kw_only=True)
class Bench:
    """What a kind of fault is given."""

    toy: Toy
    settings: Faults
    random: Random = field(default_factory=Random)

    def fresh(self, name: str, *words: str, slices: int = 4, epochs: int = 2) -> Toy:
        """A toy run with a folder of its own, nothing in it but data and, for stage 2, weights.

        It takes as many steps in any number of processes: epochs of two are half as long.
        """
        folder = self.toy.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        words = (*self.toy.words, f"epochs={epochs * self.toy.nproc}", *words)
        return replace(self.toy, folder=folder, words=words, slices=slices).prepare()


def lost_steps(toy: Toy, made: int = 0, limit: int = EVERY) -> int:
    """Steps that a run had made, as far as its figures or `made` tell, beyond what is saved.

    Raises:
        FaultError: they are more than the limit.
    """
    lost = max(0, made, toy.step()) - toy.saved()
    expect(lost <= limit, f"{lost} steps are lost")
    return max(0, lost)


# --- killed ---


def killed(bench: Bench) -> Iterator[Try]:
    """SIGKILL of all processes at random moments, half of them while it is still starting."""
    toy = bench.fresh("killed", slices=bench.settings.slices, epochs=bench.settings.epochs)
    tries = []
    starting = 1.0
    for number in range(bench.settings.kills):
        with Job(toy) as job:
            before, began = toy.step(), time.monotonic()
            if number % 2 == 0:
                time.sleep(bench.random.uniform(0, starting))
            else:
                job.wait_for_step(toy.saved() + 1)
                starting = time.monotonic() - began
                job.wait_for_step(toy.step() + bench.random.randrange(10))
                time.sleep(bench.random.uniform(0, starting / 10))
            expect(job.process.poll() is None, f"ended before it was killed:\n{job.text}")
            job.kill()
        tries.append(Try(fault="SIGKILL at random moments", lost=lost_steps(toy, before)))
    same_end(toy)
    expect("ended without a word" in toy.log, "the log says nothing of the kills")
    yield from tries


MOMENTS = {
    "a checkpoint": r"step\d+\.pt$",
    "the first checkpoint": r"epoch000\.pt$",
    "a checkpoint after an epoch": r"epoch001\.pt$",
    "the index": r"index/\w+\.json$",
    "a grid": r"epoch001\.png$",
    "the raw grid": r"raw_grid\.png$",
    "the curves": r"curves\.png$",
    "the link to the newest run": r"logs/run$",
}


def killed_while_writing(bench: Bench, names: Sequence[str] = tuple(MOMENTS)) -> Iterator[Try]:
    """SIGKILL between the writing of a temporary file and its taking the place of the old one."""
    for name in names:
        toy = bench.fresh("writing")
        if name == "the index":
            shutil.rmtree(toy.logs / "index", ignore_errors=True)
        with Job(toy, fault=f"pause={MOMENTS[name]}") as job:
            job.wait_for((toy.folder / PAUSED).exists, what=f"write of {name}")
            job.kill()
        lost = lost_steps(toy)
        same_end(toy)
        yield Try(fault=f"SIGKILL while {name} is written", lost=lost)


def launcher_killed(bench: Bench) -> Iterator[Try]:
    """SIGKILL of the process that started the others; the same command is started at once."""
    for _ in range(3):
        toy = bench.fresh("launcher")
        with Job(toy, cold=True) as job:
            job.wait_for_step(7)
            os.kill(job.process.pid, signal.SIGKILL)
            job.process.wait(ENDS_WITHIN_S)
            same_end(toy)
            expect(not job.members(), "processes outlive their launcher")
        before = re.findall(r"resumed after epoch \d+, step (\d+)", toy.log)
        # The others may have gone on for some steps, which is no loss.
        expect(len(before) == 1 and int(before[0]) >= 5, f"resumed at {before}")
        yield Try(fault="SIGKILL of the launcher alone")


# --- signals ---


CODES = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130}


def signals(bench: Bench) -> Iterator[Try]:
    """SIGTERM, SIGUSR1 and SIGINT once: save and stop. SIGINT twice: stop now."""
    yield from signalled(bench)
    yield from interrupted_twice(bench)


def signalled(bench: Bench, numbers: Sequence[signal.Signals] = tuple(CODES)) -> Iterator[Try]:
    """A signal once: save and stop."""
    for number in numbers:
        toy = bench.fresh("signals")
        with Job(toy) as job:
            job.wait_for_step(3)
            job.send(number)
            job.ends_with(CODES[number], f"stopped by {number.name} after step")
        expect(f"stopped by {number.name}" in toy.log.splitlines()[-1], "the log does not say so")
        lost = lost_steps(toy, limit=0)
        same_end(toy)
        yield Try(fault=f"{number.name} once", lost=lost)


def interrupted_twice(bench: Bench) -> Iterator[Try]:
    """SIGINT twice: stop now."""
    toy = bench.fresh("signals")
    with Job(toy, fault=r"pause=step000005\.pt$") as job:
        job.wait_for((toy.folder / PAUSED).exists, what="slow write")
        job.send(signal.SIGINT)
        time.sleep(2)
        expect(job.process.poll() is None, "ended at the first SIGINT")
        job.send(signal.SIGINT)
        job.ends_with(130, within=60)
    said = toy.log.splitlines()[-1]
    expect("interrupted from the keyboard" in said, f"the log does not say so: {said}")
    lost = lost_steps(toy)
    same_end(toy)
    yield Try(fault="SIGINT twice", lost=lost)


# --- disk ---


WRITES: dict[str, tuple[str, ...]] = {
    "a checkpoint": ("log_every=100000",),
    "figures": ("log_every=1", "checkpoint_every=null"),
    "log and curves": ("log_every=100000", "checkpoint_every=null"),
    "a grid": ("log_every=100000", "checkpoint_every=null", "grid_slices=4"),
    "the index": (),
}


def disk_full(bench: Bench, names: Sequence[str] = tuple(WRITES)) -> Iterator[Try]:
    """A disk that is full when something is to be written; then there is room again."""
    for name in names:
        toy = bench.fresh("disk")
        words = (*WRITES[name], "epochs=100000") if name != "the index" else WRITES[name]
        with SmallDisk(toy.logs) as disk:
            if toy.stage == 2:
                toy.prepare()
            if name == "the index":
                shutil.rmtree(toy.logs / "index", ignore_errors=True)
                disk.fill()
            with Job(toy, *words) as job:
                if name == "a grid":
                    grid, curves = toy.run / "grids" / "epoch001.png", toy.run / "curves.png"
                    job.wait_for(lambda: grid.exists() and toy.saved() > 0, what="grid")  # noqa: B023
                    disk.fill(but=(grid.stat().st_size + curves.stat().st_size) // 2)
                elif name != "the index":
                    job.wait_for(lambda: toy.saved() > 0 or _first(toy), what="checkpoint")  # noqa: B023
                    disk.fill()
                job.ends_with(2, "No space left on device.*logs")
            # Without checkpoints within the epoch, one epoch: so that what is meant fails first.
            lost = lost_steps(toy, limit=12 if "checkpoint_every=null" in words else EVERY)
            disk.make_room()
            _goes_on(toy, words)
        yield Try(fault=f"disk full: {name}", lost=lost)


def _first(toy: Toy) -> bool:
    return bool(list_checkpoints(toy.run)) and "training on" in toy.log


def _goes_on(toy: Toy, words: tuple[str, ...]) -> None:
    """Expect the same command to go on, for some steps."""
    begun = toy.saved()
    with Job(toy, *words) as job:
        if "epochs=100000" in words:
            job.wait_for(lambda: toy.saved() > begun, what="step")
            job.send(signal.SIGTERM)
            job.ends_with(75)
        else:
            job.ends_with(0)


def read_only(bench: Bench) -> Iterator[Try]:
    """A logs folder that cannot be written to, from the start or from some moment on."""
    toy = bench.fresh("read_only")
    with SmallDisk(toy.logs) as disk:
        toy.prepare()
        disk.read_only(True)
        with Job(toy) as job:
            job.ends_with(2, "Read-only file system.*logs")
        disk.read_only(False)
        yield Try(fault="logs folder read-only at the start")
        with Job(toy) as job:
            job.wait_for_step(3)
            disk.read_only(True)
            job.ends_with(2, "Error: .*Read-only file system.*logs")
        disk.read_only(False)
        lost = lost_steps(toy)
        same_end(toy)
    yield Try(fault="logs folder read-only during the run", lost=lost)


REMOVALS = ("the run's folder removed", "all logs removed", "the run's folder moved")


def removed(bench: Bench, names: Sequence[str] = REMOVALS) -> Iterator[Try]:
    """The run's folder, or all logs, removed or moved away while the run goes on."""
    for what in names:
        toy = bench.fresh("removed")
        with Job(toy) as job:
            job.wait_for_step(7)
            if what.endswith("moved"):
                os.replace(toy.run, toy.folder / "elsewhere")
            else:
                # First out of sight: a file may be written while a folder is being emptied.
                gone = toy.folder / "gone"
                os.replace(toy.logs if what.startswith("all") else toy.run, gone)
                shutil.rmtree(gone)
            job.ends_with(0)
        expect("was removed or moved" in toy.log, f"the log does not say so:\n{toy.log}")
        expect("the run is complete" in toy.log.splitlines()[-1], "the log does not end")
        expect((toy.logs / "run").resolve() == toy.run.resolve(), "logs/run is not the run")
        other = unharmed(toy)
        a, b = (load_checkpoint(find_checkpoint(one.run)) for one in (toy, other))
        same = all(torch.equal(value, b.predictor[key]) for key, value in a.predictor.items())
        expect(same and a.step == b.step, "other weights")
        yield Try(fault=f"{what} during the run")


# --- damaged checkpoints ---


DAMAGES = ("truncated", "flipped", "empty", "two flipped", "all truncated")


def damaged(bench: Bench, names: Sequence[str] = DAMAGES) -> Iterator[Try]:
    """The newest checkpoint truncated, flipped, empty; two of them; all of them."""
    toy = bench.fresh("damaged")
    with Job(toy) as job:
        job.wait_for_step(12)
        job.kill()
    as_it_was = toy.folder / "as_it_was"
    shutil.copytree(toy.logs, as_it_was, symlinks=True)
    for how in names:
        shutil.rmtree(toy.logs)
        shutil.copytree(as_it_was, toy.logs, symlinks=True)
        before, found = toy.step(), list_checkpoints(toy.run)
        hit = {"two flipped": found[-2:], "all truncated": found}.get(how, found[-1:])
        for path in hit:
            damage(path, how.split()[-1])
        if how.startswith("all"):
            with Job(toy) as job:
                job.ends_with(2, "all .* checkpoints of .* are damaged", "move that folder away")
            expect(not (toy.logs / f"{toy.run.name}_2").exists(), "a new run was begun")
            lost = 0
        else:
            lost = lost_steps(toy, before, limit=EVERY * (1 + len(hit)))
            complete(toy)
            expect(f"{hit[-1].name} is damaged" in toy.log, "the log does not say so")
            expect_same_end(toy, unharmed(toy))
        yield Try(fault=f"checkpoint damaged: {how}", lost=lost)


# --- processes that are lost ---


def worker_killed(bench: Bench) -> Iterator[Try]:
    """SIGKILL of a loading process, as the kernel does where memory is short."""
    toy = bench.fresh("worker")
    with Job(toy, "workers=2", cold=True) as job:
        job.wait_for_step(3)
        trainers = _trainers(toy, job)
        workers = [pid for pid in job.members() if _parent(pid) in trainers]
        os.kill(bench.random.choice(workers), signal.SIGKILL)
        job.ends_with(1, r"DataLoader worker \(pid.*killed by signal", within=ENDS_WITHIN_S)
    expect("DataLoader worker" in toy.log, "the log does not say so")
    lost = lost_steps(toy)
    same_end(toy)
    yield Try(fault="SIGKILL of a loading process", lost=lost)


def rank_lost(bench: Bench) -> Iterator[Try]:
    """One of two processes killed, or stopped for ever."""
    for number, words in (
        (signal.SIGKILL, r"rank {rank} \(process {pid}\) was ended by SIGKILL"),
        (signal.SIGSTOP, r"rank {rank} \(process {pid} on .*\) has not been heard of for 15 s"),
    ):
        for rank in (0, 1):
            toy = bench.fresh("rank")
            with Job(toy, cold=True) as job:
                job.wait_for_step(7)
                pid = _trainers(toy, job)[rank]
                os.kill(pid, number)
                began = time.monotonic()
                job.ends_with(1, words.format(rank=rank, pid=pid), within=ENDS_WITHIN_S)
                seconds = time.monotonic() - began
            other = toy.log if rank else (toy.run / "log_rank1.txt").read_text()
            expect(f"rank {rank} (process {pid}" in other, "the other's log does not say so")
            lost = lost_steps(toy)
            same_end(toy)
            yield Try(
                fault=f"{number.name} of one of two processes",
                lost=lost,
                note=f"ended within {seconds:.0f} s",
            )


def _trainers(toy: Toy, job: Job) -> list[int]:
    """The training processes, by rank."""
    if toy.nproc == 1:
        return [job.process.pid]
    logs = [toy.run / "log.txt", toy.run / "log_rank1.txt"]
    found = [re.findall(r"rank \d of 2: process (\d+)", path.read_text())[-1] for path in logs]
    return [int(pid) for pid in found]


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


# --- failing losses ---


FAILURES = {
    "loss NaN": ("nan", r"loss is nan on .*\.h5 slice \d"),
    "loss NaN in one of the processes": ("nan", r"loss is nan on .*\.h5 slice \d"),
    "loss explodes": ("explodes", "the loss explodes: from"),
}


def failing(bench: Bench) -> Iterator[Try]:
    """A loss that is NaN or explodes: the run goes back and on more gently, or ends clearly."""
    yield from fails_once(bench)
    yield from fails_for_good(bench)


def fails_once(bench: Bench, names: Sequence[str] = tuple(FAILURES)) -> Iterator[Try]:
    """The run goes back and on more gently."""
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
        expect(len(rows) >= 1, "the figures do not say so")
        undone = event["step"] - event["back_to"]
        expect(undone <= 2 * EVERY, f"{undone} steps were undone")
        yield Try(fault=name, lost=undone)


def fails_for_good(bench: Bench) -> Iterator[Try]:
    """After as many rollbacks as it may have, the run ends clearly."""
    toy = bench.fresh("failing")
    with Job(toy, "rollbacks=2", fault=f"always={8 * toy.stage}") as job:
        job.ends_with(2, r"RunFailedError: the run is failing after 2 rollbacks, at step \d+: ")
    said = [line for line in toy.log.splitlines() if "the run ended with" in line]
    expect(len(said) == 1 and "RunFailedError" in said[0], "the log does not say so")
    weights = load_checkpoint(find_checkpoint(toy.run)).predictor
    expect(all(value.isfinite().all() for value in weights.values()), "NaN was saved")
    yield Try(fault="loss NaN for good", lost=lost_steps(toy))


# --- volumes ---


def _replaced(path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere"
    write_dataset(elsewhere, replace(PHANTOM, slices=5), train_volumes=3, val_volumes=1, seed=9)
    os.replace(elsewhere / path.parent.name / path.name, path)


def _made_nan(path: Path) -> None:
    """Its size and time as before."""
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
    """A training volume truncated, deleted, replaced or made NaN during the run; then put right."""
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


# --- two runs, soak, determinism ---


def two_runs(bench: Bench) -> Iterator[Try]:
    """A second run on the folder of one that is going on; then its holder is killed."""
    toy = bench.fresh("two")
    with Job(toy, fault=r"pause=step000005\.pt$") as holder:
        holder.wait_for((toy.folder / PAUSED).exists, what="pause")
        before = sorted(path.name for path in toy.logs.iterdir())
        for words in ((f"resume={toy.run}",), ()):
            with Job(toy, *words) as second:
                second.ends_with(2, "RunInUseError: .* is in use by another process")
        expect(sorted(path.name for path in toy.logs.iterdir()) == before, "something was begun")
        holder.kill()
    same_end(toy)
    yield Try(fault="a second run on the same folder")
    yield Try(fault="SIGKILL of the holder of the lock")


def soak(bench: Bench) -> Iterator[Try]:
    """Many steps: memory, open files, threads and shared-memory segments stay as they are."""
    # At full strength the toys' adversary writes texture, and the run goes back again and again.
    words = ("workers=2", "log_every=50", "checkpoint_every=500", "adversary_strength=0.1")
    toy = bench.fresh("soak", *words, slices=52)
    steps = bench.settings.steps
    per_epoch = 3 * 52 // toy.nproc
    samples: dict[str, list[tuple[float, float]]] = {}
    pace = ("validate_every=5", "grid_every=20", f"epochs={-(-steps // per_epoch)}")
    with Job(toy, *pace) as job:
        job.wait_for_step(steps // 10)
        while job.process.poll() is None:
            step, pids = toy.step(), _trainers(toy, job)
            try:
                figures = process_figures(pids)
            except (FileNotFoundError, ProcessLookupError, KeyError):
                break  # it has just ended
            for key, value in figures.items():
                samples.setdefault(key, []).append((step / 1000, value))
            time.sleep(1)
        job.ends_with(0)
    notes = [
        f"{key} {values[-1][1]:.4g}, {slope(values):+.3g} per 1,000 steps"
        for key, values in samples.items()
    ]
    grown = slope(samples["rss_mb"]) * steps / 1000
    expect(grown < 100 * toy.nproc, f"memory grows: {'; '.join(notes)}")
    for key in ("files", "threads", "segments"):
        expect(abs(slope(samples[key])) * steps / 1000 < 5, f"{key} grow: {'; '.join(notes)}")
    yield Try(fault=f"soak: {toy.step():,} steps", note="; ".join(notes))


def epochs_with_workers(bench: Bench) -> Iterator[Try]:
    """Epochs with loading processes: none is left after the end."""
    segments = process_figures([])["segments"]
    toy = bench.fresh("workers", epochs=3)
    with Job(toy, "workers=2", cold=True) as job:
        job.ends_with(0)  # which looks for processes that are left
    expect(process_figures([])["segments"] <= segments, "shared memory is left")
    expect_same_end(toy, unharmed(toy))
    yield Try(fault="epochs with loading processes: what is left")


def determinism(bench: Bench) -> Iterator[Try]:
    """The same seed twice; and one process with two batches a step against two processes."""
    toy = bench.fresh("same")
    same_end(toy)
    yield Try(fault="the same seed twice")
    if toy.nproc == 2:
        words = ("dropout=0", "adversary_warmup_steps=0", "adversary_replay=0")
        pair = [
            bench.fresh("two_processes", *words),
            replace(bench, toy=replace(toy, nproc=1)).fresh(
                "one_process", *words, "accumulate=2", epochs=4
            ),
        ]
        for one in pair:
            complete(one)
        a, b = (load_checkpoint(find_checkpoint(one.run)) for one in pair)
        expect(a.step == b.step, f"{a.step} and {b.step} steps")
        largest = 0.0
        for key, value in a.predictor.items():
            # Biases before an instance norm have no gradient but rounding, which Adam scales up.
            if not key.endswith("bias"):
                torch.testing.assert_close(value, b.predictor[key], rtol=1e-3, atol=1e-4)
                largest = max(largest, float((value - b.predictor[key]).abs().max()))
        yield Try(
            fault="accumulate=2 against two processes", note=f"largest difference {largest:.1g}"
        )


KINDS: dict[str, Callable[[Bench], Iterator[Try]]] = {
    "signals": signals,
    "damaged": damaged,
    "killed_while_writing": killed_while_writing,
    "launcher_killed": launcher_killed,
    "worker_killed": worker_killed,
    "rank_lost": rank_lost,
    "failing": failing,
    "volume_spoilt": volume_spoilt,
    "two_runs": two_runs,
    "disk_full": disk_full,
    "read_only": read_only,
    "removed": removed,
    "epochs_with_workers": epochs_with_workers,
    "determinism": determinism,
    "killed": killed,
    "soak": soak,
}
NEED_A_DISK = ("disk_full", "read_only")
NEED_TWO = ("launcher_killed", "rank_lost")
DONE = "all done"


def table(rows: list[dict[str, object]]) -> str:
    """Rows as fault | times tried | survived | lost."""
    lines = ["| fault | times tried | survived | lost |", "|---|---|---|---|"]
    by_fault: dict[str, list[dict[str, object]]] = {}
    for row in rows:
        by_fault.setdefault(str(row["fault"]), []).append(row)
    for fault, its in by_fault.items():
        survived = sum(1 for row in its if row["survived"])
        lost = max(int(str(row["lost"])) for row in its)
        notes = list(dict.fromkeys(str(row["note"]) for row in its if row["note"]))
        text = f"{fault} ({notes[-1]})" if notes and len(its) <= 4 else fault
        steps = f"at most {lost} steps" if lost else "nothing"
        lines.append(f"| {text} | {len(its)} | {survived} | {steps} |")
    return "\n".join(lines)


def main(settings: Faults) -> int:
    """Try everything out, print the table; the number of tries that were not survived."""
    path = settings.folder / "rows.jsonl"
    if settings.again:
        path.unlink(missing_ok=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    no_disk = SmallDisk.why_not()
    cases = [
        (name, stage, nproc)
        for name in settings.kinds or KINDS
        for stage in settings.stages
        for nproc in settings.processes
        if nproc > 1 or name not in NEED_TWO
    ]
    for name, stage, nproc in cases:
        case = f"{name}, stage {stage}, {nproc} process{'es' if nproc > 1 else ''}"
        if any(row["case"] == case and row["fault"] == DONE for row in rows):
            continue
        if name in NEED_A_DISK and no_disk:
            print(f"{case}: left out: {no_disk}", flush=True)
            continue
        rows = [row for row in rows if row["case"] != case]  # of a benchmark that was interrupted
        settings.folder.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        folder = settings.folder / case.replace(", ", "-").replace(" ", "_")
        bench = Bench(
            toy=Toy(folder=folder, stage=stage, nproc=nproc),
            settings=settings,
            random=Random(f"{settings.seed} {case}"),
        )
        began, made = time.monotonic(), 0
        for one in _tries(name, bench):
            rows.append({"case": case, **vars(one)})
            write_row(path, rows[-1])
            made += 1
        if all(row["survived"] for row in rows if row["case"] == case):
            rows.append({"case": case, "fault": DONE})
            write_row(path, rows[-1])
            shutil.rmtree(folder, ignore_errors=True)
        print(f"{case}: {made} tries in {time.monotonic() - began:.0f} s", flush=True)
    rows = [row for row in rows if row["fault"] != DONE]
    print(table(rows))
    return sum(1 for row in rows if not row["survived"])


def _tries(name: str, bench: Bench) -> Iterator[Try]:
    """The tries of a kind; the last one is the one that was not survived, if there is one."""
    try:
        yield from KINDS[name](bench)
    except (FaultError, AssertionError) as error:
        print(error, flush=True)
        yield Try(fault=f"{name}: failed", note=str(error).partition("\n")[0], survived=False)


if __name__ == "__main__":
    with user_errors():
        sys.exit(1 if main(from_words(Faults(), sys.argv[1:])) else 0)
