"""Time and memory of a training step of both stages, and of the inference of one slice.

    python -m benchmarks.step size=paper out=step.jsonl
    python -m benchmarks.step size=medium 'variants=[plain,ours]' 'stages=[pretrain]' repeats=1
    python -m benchmarks.step size=paper device=cuda steps=10 slices=4

`ours` is the project's own code in float32, with or without recomputation and bfloat16; `plain` the
formulation in benchmarks/plain.py, also in bfloat16, with channels last, or with its U-Nets
compiled. Of either, `graphs` starts the kernels of a step by one call (benchmarks/graphs.py: needs
a GPU). `fastmri` the public VarNet with as many cascades, channels and poolings (its U-Nets have
a level more, of twice the width: the table gives the weights), and `varnet` the project's own code
for that network. Every run is a process of its own, one unmeasured step and then the timed ones,
and the variants take turns. The share of each group of operators is measured apart from that, and
with it how busy a GPU is: the time of a step's kernels over that of the step. With `out` a
benchmark that was stopped goes on where it was. For Linux.
"""

import contextlib
import ctypes
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from banding_removal.command_line import user_errors
from banding_removal.config.overrides import from_words
from banding_removal.config.settings import REPOSITORY
from banding_removal.errors import ConfigError
from banding_removal.runs.build import choose_device
from benchmarks.operator_groups import CONVOLUTION, GROUPS, profiled
from benchmarks.step_sizes import SIZES
from benchmarks.step_variants import Stage, UnavailableError, Variant, prepare

Row = dict[str, Any]

MB = 1e6
MEASURED = ("seconds", "step_mb", "peak_mb")


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What is measured."""

    size: Literal["tiny", "medium", "dev", "paper"] = "paper"
    variants: tuple[str, ...] = get_args(Variant)
    stages: tuple[str, ...] = get_args(Stage)
    repeats: int = 3  # runs of each variant and stage, in turn with the others
    steps: int | None = None  # timed in each run; null: 2 of the paper's size, more of smaller ones
    threads: int = 2  # of PyTorch on the CPU
    slices: int = 1  # in a step; inference takes as many at once
    device: str = "auto"
    breakdown: bool = True  # also profile a step of each
    limit: float | None = None  # seconds, after which a run is ended and left out; null: none
    out: Path | None = None  # JSON lines, one for each run; what is in there is not run again
    child: Literal["timing", "breakdown"] | None = None  # the benchmark's own processes

    def __post_init__(self) -> None:
        for given, known in ((self.variants, Variant), (self.stages, Stage)):
            unknown = [name for name in given if name not in get_args(known)]
            if unknown:
                raise ConfigError(f"{', '.join(unknown)}: none of {', '.join(get_args(known))}")
        counts = (self.repeats, self.threads, self.slices, 1 if self.steps is None else self.steps)
        if min(counts) < 1:
            raise ConfigError("repeats, threads, slices and steps must be positive")


def measure(benchmark: Benchmark) -> Row:
    """In a process of its own: seconds of each step and memory, or seconds of each group.

    Raises:
        UnavailableError: the variant cannot run here.
    """
    torch.set_num_threads(benchmark.threads)
    device, size = torch.device(benchmark.device), SIZES[benchmark.size]
    variant, stage, slices = benchmark.variants[0], benchmark.stages[0], benchmark.slices
    step, predictor = prepare(variant, stage, size, device, slices)
    parameters = sum(weight.numel() for weight in predictor.parameters())
    before = _reset_peak(device)
    seconds, found = [], None
    for _ in range(1 + (benchmark.steps or 1)):
        start = _now(device)
        found = step()
        seconds.append(_now(device) - start)
        if benchmark.child == "breakdown":
            return {"parameters": parameters, "groups": profiled(step, device)}
    peak = _peak(device, in_graphs="graphs" in variant)
    memory = {"peak_mb": peak / MB, "step_mb": (peak - before) / MB}
    last = {"metrics": found} if isinstance(found, dict) else {}  # of the last step
    return {"parameters": parameters, "seconds": seconds[1:], **memory, **last}


def _now(device: torch.device) -> float:
    """The clock, when the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _reset_peak(device: torch.device) -> float:
    """Bytes in use; the peak is counted from here."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(AttributeError):  # not every C library has it
        # What making the data left behind would take in a part of what the step needs.
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # where that is not allowed, it is the peak since the start
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(device: torch.device, *, in_graphs: bool) -> float:
    if device.type != "cuda":
        # Not getrusage: its peak starts with that of the process that started this one.
        return _status("VmHWM")
    if in_graphs:  # the memory that a graph works in does not count as allocated
        return torch.cuda.max_memory_reserved(device)
    return torch.cuda.max_memory_allocated(device)


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(float(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def run_child(job: Benchmark) -> Row:
    """The row of one run.

    Raises:
        UnavailableError: the variant cannot run here.
        RuntimeError: the process failed (the end of what it said), or took too long.
    """
    words = [
        *(f"size={job.size}", f"variants=[{job.variants[0]}]", f"stages=[{job.stages[0]}]"),
        *(f"steps={job.steps}", f"threads={job.threads}", f"device={job.device}"),
        *(f"slices={job.slices}", f"child={job.child}"),
    ]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.step", *words],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": str(job.threads)},
            capture_output=True,
            text=True,
            timeout=job.limit,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"not done after {job.limit:g} s (limit)") from error
    if done.returncode != 0:
        raise RuntimeError(f"exit status {done.returncode}: {done.stderr.strip()[-2000:]}")
    row: Row = json.loads(done.stdout.splitlines()[-1])
    if "unavailable" in row:
        raise UnavailableError(row["unavailable"])
    return row


def jobs_of(benchmark: Benchmark) -> Iterator[tuple[Benchmark, Row]]:
    """Every run, in order, and what it is known by in the file."""
    steps = benchmark.steps or SIZES[benchmark.size].steps
    device = choose_device(benchmark.device)
    rounds: list[tuple[Literal["timing", "breakdown"], int]] = [
        ("timing", repeat) for repeat in range(1, benchmark.repeats + 1)
    ]
    if benchmark.breakdown:
        rounds.append(("breakdown", 1))
    for kind, repeat in rounds:
        for stage, variant in itertools.product(benchmark.stages, benchmark.variants):
            job = replace(
                benchmark,
                variants=(variant,),
                stages=(stage,),
                steps=steps,
                device=str(device),
                child=kind,
            )
            yield (
                job,
                {
                    **{"kind": kind, "size": job.size, "stage": stage, "variant": variant},
                    **{"repeat": repeat, "steps": steps, "threads": job.threads},
                    "slices": job.slices,
                    **{
                        "device": job.device,
                        "machine": _machine(device),
                        "torch": torch.__version__,
                    },
                },
            )


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "CPU"


def main(benchmark: Benchmark) -> int:
    """Run what is not in the file yet, and print the tables; 1 if a run failed, else 0."""
    stored: list[Row] = []
    if benchmark.out is not None and benchmark.out.exists():
        stored = [json.loads(line) for line in benchmark.out.read_text().splitlines()]
    rows: list[Row] = []
    without: set[tuple[str, str]] = set()  # stages and variants that cannot run
    failed = 0
    for job, known_by in jobs_of(benchmark):
        stage, variant = place = job.stages[0], job.variants[0]
        row = next((row for row in stored if known_by.items() <= row.items()), None)
        if row is None and place not in without:
            try:
                row = known_by | run_child(job)
            except (UnavailableError, RuntimeError) as error:
                print(f"left out: {stage} {variant}: {error}", flush=True)
                failed |= isinstance(error, RuntimeError)
                without.add(place)
                continue
            said = [f"{second:.3g} s" for second in row.get("seconds", [])]
            print(f"{job.child} {known_by['repeat']}: {stage} {variant}", *said, flush=True)
            if benchmark.out is not None:
                with benchmark.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        if row is not None:
            rows.append(row)
    print_tables(rows)
    return failed


def print_tables(rows: list[Row]) -> None:
    """Time and memory of each stage and variant, and the shares of the groups of operators."""
    figures = {place: _figures(rows, *place) for place in _places(rows)}
    if not figures:
        return
    first = rows[0]
    print(
        f"\n{first['size']} size, slices in a step: {first['slices']}, on {first['machine']} "
        f"({first['device']}, {first['threads']} threads), PyTorch {first['torch']}\n"
        "median over all steps; memory above that before the first step, and of the process; "
        "ratios to plain, of varnet to fastmri"
    )
    print(
        f"{'stage':12} {'variant':29} {'weights':>9} {'s':>8} {'min - max':>17} {'ratio':>6} "
        f"{'step MB':>8} {'ratio':>6} {'peak MB':>8} {'ratio':>6} {'conv':>5} {'busy':>5}"
    )
    for (stage, variant), own in figures.items():
        baseline = "fastmri" if variant.startswith("varnet") else "plain"
        base = figures.get((stage, baseline), {})
        ratio = {key: own[key] / base[key] if key in base else float("nan") for key in MEASURED}
        extent = f"{own['min']:.3g} - {own['max']:.3g}"
        share = f"{own['groups'][CONVOLUTION]:.0%}" if "groups" in own else "-"
        busy = f"{own['busy']:.0%}" if "busy" in own else "-"
        print(
            f"{stage:12} {variant:29} {own['parameters']:9} {own['seconds']:8.3g} {extent:>17} "
            f"{ratio['seconds']:6.2f} {own['step_mb']:8.0f} {ratio['step_mb']:6.2f} "
            f"{own['peak_mb']:8.0f} {ratio['peak_mb']:6.2f} {share:>5} {busy:>5}"
        )
    if any("groups" in own for own in figures.values()):
        print(f"\nshares of the operators' time\n{'':42}", *(f"{name:>20}" for name in GROUPS))
    for (stage, variant), own in figures.items():
        if "groups" in own:
            shares = (f"{own['groups'][name]:>20.1%}" for name in GROUPS)
            print(f"{stage:12} {variant:29}", *shares)


def _places(rows: list[Row]) -> list[tuple[str, str]]:
    """Stages and variants that were timed, by stage."""
    places = dict.fromkeys((r["stage"], r["variant"]) for r in rows if r["kind"] == "timing")
    return sorted(places, key=lambda place: get_args(Stage).index(place[0]))


def _figures(rows: list[Row], stage: str, variant: str) -> Row:
    """A line of the table; `groups` are shares, and `busy` is a GPU's part of the time."""
    mine = [row for row in rows if (row["stage"], row["variant"]) == (stage, variant)]
    timed = [row for row in mine if row["kind"] == "timing"]
    seconds = [second for row in timed for second in row["seconds"]]
    figures = {
        "parameters": timed[0]["parameters"],
        "seconds": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "step_mb": max(row["step_mb"] for row in timed),
        "peak_mb": max(row["peak_mb"] for row in timed),
    }
    for row in mine:
        if row["kind"] == "breakdown":
            total = sum(row["groups"].values())
            if "graphs" not in variant:  # whose kernels belong to no operator
                figures["groups"] = {name: value / total for name, value in row["groups"].items()}
            if row["device"] != "cpu":
                figures["busy"] = total / figures["seconds"]
    return figures


if __name__ == "__main__":
    with user_errors():
        given = from_words(Benchmark(), sys.argv[1:])
        if given.child is None:
            sys.exit(main(given))
        try:
            print(json.dumps(measure(given)))
        except UnavailableError as error:
            print(json.dumps({"unavailable": str(error)}))
