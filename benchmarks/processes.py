"""Time per step in one process and in two over Gloo, on one machine, both stages.

    ipython scripts/make_phantom.py
    python -m benchmarks.processes
    python -m benchmarks.processes slices=24 repeats=5

Every configuration runs in processes of its own, with the demo's networks on the demo's phantom.
The two processes have half of the cores each.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from banding_removal.command_line import user_errors
from banding_removal.config.overrides import from_words
from banding_removal.config.settings import REPOSITORY


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How much is measured."""

    data_path: Path = REPOSITORY / "datasets" / "phantom"
    slices: int = 24  # seen in each run, the first four unmeasured
    repeats: int = 3  # of each configuration, in turn with the others


CASES = {
    "1 process, 1 core": {"nproc": 1, "accumulate": 2, "threads": 1},
    "1 process, all cores": {"nproc": 1, "accumulate": 2, "threads": len(os.sched_getaffinity(0))},
    "2 processes": {"nproc": 2, "accumulate": 1, "threads": len(os.sched_getaffinity(0)) // 2},
}
STAGES = {
    "stage 1": (),
    "stage 2": ("stage=train", "adversary=shallow", "adversary_chans=12"),
}


def step_ms(settings: Timing, stage: tuple[str, ...], case: dict[str, int]) -> list[float]:
    """Milliseconds of each step of two slices, but for the first two steps."""
    with tempfile.TemporaryDirectory() as logs:
        words = [
            *(f"data_path={settings.data_path}", f"logs={logs}", "name=timing", "device=cpu"),
            *("cascades=4", "chans=8", "pools=2", "sens_chans=4", "acs_lines=[12]", "workers=0"),
            *("train_filter.magnet=null", "val_filter.magnet=null", "epochs=1", "log_every=1"),
            *("val_filter.fraction=0.01", "val_slices=[0,1]", "grid_slices=0"),
            *(f"nproc={case['nproc']}", f"accumulate={case['accumulate']}", *stage),
            f"epoch_fraction={settings.slices / 288}",
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, case["threads"]))}
        script = REPOSITORY / "scripts" / "pretrain_dev.py"
        subprocess.run(
            [sys.executable, str(script), *words], check=True, env=environment, capture_output=True
        )
        lines = (Path(logs) / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["step_ms"] for row in rows if row["kind"] == "train"][2:]


def main(settings: Timing) -> None:
    """Print medians and efficiencies."""
    print(f"{'':9}{'':22}{'ms a step of 2 slices':>22}{'slices/s':>10}{'speed-up':>10}")
    for stage, words in STAGES.items():
        times: dict[str, list[float]] = {name: [] for name in CASES}
        for _ in range(settings.repeats):
            for name, case in CASES.items():
                times[name] += step_ms(settings, words, case)
        medians = {name: statistics.median(values) for name, values in times.items()}
        single = medians["1 process, 1 core"]
        for name, median in medians.items():
            rate, gain = 2000 / median, single / median
            print(f"{stage:9}{name:22}{median:22.0f}{rate:10.1f}{gain:10.2f}", flush=True)
        both = medians["2 processes"]
        print(
            f"{stage:9}efficiency of 2 processes: {single / both / 2:.0%} of twice one core, "
            f"{medians['1 process, all cores'] / both:.2f} x one process on all cores"
        )


if __name__ == "__main__":
    with user_errors():
        main(from_words(Timing(), sys.argv[1:]))
