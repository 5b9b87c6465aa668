"""Time per training step on a CPU, by threads and processes, with and without other programs.

    python -m benchmarks.processes                             the demo's size
    python -m benchmarks.processes size=real slices=4 repeats=1

Each step takes one slice in both orientations, either in one process or in two that share the pair
(`split_pairs`). At the same time, `busy` other programs compute without end. Every run is a process
of its own, and the cases take turns.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from banding_removal.command_line import user_errors
from banding_removal.config.overrides import from_words
from banding_removal.config.settings import REPOSITORY
from banding_removal.data.phantom.files import write_dataset
from banding_removal.data.phantom.spec import DEMO, MEDIUM, REAL_SIZE
from banding_removal.errors import ConfigError

SPECS = {"demo": DEMO, "medium": MEDIUM, "real": REAL_SIZE}
ACS_LINES = {"demo": 10, "medium": 12, "real": 16}
CASES = {
    "1 process, all cores": {"nproc": 1, "threads": len(os.sched_getaffinity(0))},
    "1 process, 1 thread": {"nproc": 1, "threads": 1},
    "2 processes, 1 thread each": {"nproc": 2, "threads": 1},
}
STAGES = {
    "stage 1": (),
    "stage 2": ("stage=train", "recipe=adversary", "adversary_pretrain_steps=0"),
}


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What is measured."""

    size: Literal["demo", "medium", "real"] = "demo"
    folder: Path = REPOSITORY / "datasets" / "processes"
    slices: int = 16  # in each run, the first two unmeasured
    repeats: int = 2  # of each case, in turn with the others
    busy: tuple[int, ...] = (0, 1, 2)  # programs beside it
    stages: tuple[str, ...] = tuple(STAGES)

    def __post_init__(self) -> None:
        if not 2 < self.slices <= 2 * self.slices_per_volume:
            raise ConfigError(f"slices must be from 3 to {2 * self.slices_per_volume}")

    @property
    def slices_per_volume(self) -> int:
        """Of the phantom; it has two volumes for training."""
        return SPECS[self.size].slices


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """So many other processes that compute without end."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def step_ms(settings: Timing, stage: str, case: dict[str, int]) -> list[float]:
    """Milliseconds of each step, but for the first two."""
    with tempfile.TemporaryDirectory() as logs:
        words = [
            *(f"data_path={settings.folder / settings.size}", f"logs={logs}", "device=cpu"),
            *("cascades=4", "chans=8", "pools=2", "sens_chans=4", "workers=0", "log_every=1"),
            *("train_filter.magnet=null", "val_filter.magnet=null", "epochs=1", "grid_slices=0"),
            *("val_slices=[0,1]", "optimizer=muon", "paired=true", *STAGES[stage]),
            *(f"acs_lines=[{ACS_LINES[settings.size]}]", f"split_pairs={case['nproc'] > 1}"),
            *(f"nproc={case['nproc']}", f"threads={case['threads']}"),
            f"epoch_fraction={settings.slices / (2 * settings.slices_per_volume)}",
        ]
        script = REPOSITORY / "scripts" / "pretrain_dev.py"
        done = subprocess.run(
            [sys.executable, str(script), *words], check=False, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"the run has failed ({done.returncode}): {done.stderr[-2000:]}")
        lines = (Path(logs) / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["step_ms"] for row in rows if row["kind"] == "train"][2:]


def main(settings: Timing) -> None:
    """Print the medians."""
    write_dataset(
        settings.folder / settings.size,
        SPECS[settings.size],
        train_volumes=2,
        val_volumes=1,
        seed=0,
    )
    print(f"ms per pair, size {settings.size}, by the number of busy loops beside it")
    print(f"{'':38}" + "".join(f"{count:>18}" for count in settings.busy))
    for stage in settings.stages:
        times: dict[tuple[str, int], list[float]] = {}
        for _ in range(settings.repeats):
            for count in settings.busy:
                for name, case in CASES.items():
                    with busy_loops(count):
                        times.setdefault((name, count), []).extend(step_ms(settings, stage, case))
        for name in CASES:
            cells = []
            for count in settings.busy:
                median, worst = statistics.median(times[name, count]), max(times[name, count])
                cells.append(f"{median:.0f} (<= {worst:.0f})")
            print(f"{stage:9} {name:28}" + "".join(f"{cell:>18}" for cell in cells), flush=True)


if __name__ == "__main__":
    with user_errors():
        main(from_words(Timing(), sys.argv[1:]))
