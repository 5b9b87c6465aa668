"""Faults: processes that are killed, stopped or signalled, and a second run on the same folder."""

import os
import re
import shutil
import signal
import time
from collections.abc import Iterator, Sequence

from tests.faults.bench import Bench, Try
from tests.faults.driver import PAUSED
from tests.faults.ends import lost_steps, same_end
from tests.faults.job import Job, parent_of
from tests.faults.toy import expect

ENDS_WITHIN_S = 120.0  # a job that lost a process: 15 s without heartbeat, 30 s to end the others


def killed(bench: Bench) -> Iterator[Try]:
    """SIGKILL of all processes at random moments, half of them during the start."""
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
    expect("ended without a message" in toy.log, "the log does not mention the kills")
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
    """SIGKILL between the writing of a temporary file and its renaming."""
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
        # The others may have gone on for some steps; those are not lost.
        expect(len(before) == 1 and int(before[0]) >= 5, f"resumed at {before}")
        yield Try(fault="SIGKILL of the launcher alone")


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


def worker_killed(bench: Bench) -> Iterator[Try]:
    """SIGKILL of a data loading worker, as by the kernel when memory is short."""
    toy = bench.fresh("worker")
    with Job(toy, "workers=2", cold=True) as job:
        job.wait_for_step(3)
        trainers = job.trainers()
        workers = [pid for pid in job.members() if parent_of(pid) in trainers]
        os.kill(bench.random.choice(workers), signal.SIGKILL)
        job.ends_with(1, r"DataLoader worker \(pid.*killed by signal", within=ENDS_WITHIN_S)
    expect("DataLoader worker" in toy.log, "the log does not say so")
    lost = lost_steps(toy)
    same_end(toy)
    yield Try(fault="SIGKILL of a loading process", lost=lost)


def rank_lost(bench: Bench) -> Iterator[Try]:
    """SIGKILL or SIGSTOP of one of two processes."""
    for number, words in (
        (signal.SIGKILL, r"rank {rank} \(process {pid}\) was ended by SIGKILL"),
        (signal.SIGSTOP, r"rank {rank} \(process {pid} on .*\) has not responded for 15 s"),
    ):
        for rank in (0, 1):
            toy = bench.fresh("rank")
            with Job(toy, cold=True) as job:
                job.wait_for_step(7)
                pid = job.trainers()[rank]
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


def two_runs(bench: Bench) -> Iterator[Try]:
    """A second run on the folder of one that is running; then the first is killed."""
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
