"""Many steps or epochs without a fault: nothing leaks, and the same seed gives the same weights."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from banding_removal.runs.checkpoint import find_checkpoint, load_checkpoint
from tests.faults.bench import Bench, Try
from tests.faults.ends import complete, expect_same_end, same_end, unharmed
from tests.faults.job import Job
from tests.faults.toy import expect


def soak(bench: Bench) -> Iterator[Try]:
    """Many steps: memory, open files, threads and shared-memory segments do not grow."""
    # At full strength, the toys' adversary produces texture, and the run is rolled back repeatedly.
    words = ("workers=2", "log_every=50", "checkpoint_every=500", "adversary_strength=0.1")
    toy = bench.fresh("soak", *words, slices=52)
    steps = bench.settings.steps
    per_epoch = 3 * 52 // toy.nproc
    samples: dict[str, list[tuple[float, float]]] = {}
    pace = ("validate_every=5", "grid_every=20", f"epochs={-(-steps // per_epoch)}")
    with Job(toy, *pace) as job:
        job.wait_for_step(steps // 10)
        while job.process.poll() is None:
            step, pids = toy.step(), job.trainers()
            try:
                usage = process_usage(pids)
            except (FileNotFoundError, ProcessLookupError, KeyError):
                break  # it has just ended
            for key, value in usage.items():
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
    """Epochs with data loading workers: no process or shared memory is left at the end."""
    segments = process_usage([])["segments"]
    toy = bench.fresh("workers", epochs=3)
    with Job(toy, "workers=2", cold=True) as job:
        job.ends_with(0)  # which looks for processes that are left
    expect(process_usage([])["segments"] <= segments, "shared memory is left")
    expect_same_end(toy, unharmed(toy))
    yield Try(fault="epochs with loading processes: what is left")


def determinism(bench: Bench) -> Iterator[Try]:
    """The same seed twice; one process with two batches per step against two processes."""
    toy = bench.fresh("same")
    same_end(toy)
    yield Try(fault="the same seed twice")
    if toy.nproc == 2:
        words = ("dropout=0", "adversary_pretrain_steps=0", "adversary_replay=0")
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


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """Slope of the least-squares line through (x, y)."""
    xs, ys = zip(*samples, strict=True)
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((a - x) ** 2 for a in xs)
    return sum((a - x) * (b - y) for a, b in samples) / spread if spread else 0.0


def process_usage(pids: Sequence[int]) -> dict[str, float]:
    """Memory (MB), open files and threads of processes; shared segments of the machine."""
    totals = {"rss_mb": 0.0, "files": 0.0, "threads": 0.0}
    for pid in pids:
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        totals["rss_mb"] += int(fields["VmRSS"].split()[0]) / 1024
        totals["threads"] += int(fields["Threads"])
        totals["files"] += len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208  # names are enough
    segments = sum(1 for path in Path("/dev/shm").iterdir() if path.name.startswith("torch_"))
    return {**totals, "segments": float(segments)}
