"""Is banding gone, for every seed, and at what cost? Recipes of stage 2 against a control.

    python -m benchmarks.efficacy 'seeds=[0,1,2]' 'recipes=[control,direct]'
    python -m benchmarks.efficacy size=128 'seeds=[0]' volumes=chosen
    python -m benchmarks.efficacy size=paper varied=false volumes=final device=cuda minutes=9

For each seed: stage 1 from random weights, then from its weights each recipe for the same number of
steps; the control does nothing against banding. All are measured on volumes that were neither
trained nor validated on (`volumes=final`), or, while recipes are being chosen, on others
(`chosen`). Seeds run side by side, each on one core. What is complete is not run again, and what
was interrupted continues, also on another machine (benchmarks/carry.py). Rows, one per run and
volumes, are in <folder>/rows/*.jsonl; `benchmarks/efficacy_report.py` makes tables and plots of
them.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from banding_removal.command_line import user_errors
from banding_removal.config.overrides import from_words
from banding_removal.config.settings import REPOSITORY, Settings
from banding_removal.data.index import index_folder
from banding_removal.data.phantom.files import write_dataset
from banding_removal.errors import ConfigError
from banding_removal.evaluation.evaluate import SetResult, evaluate
from banding_removal.evaluation.image_sets import path_set, reference_volumes
from banding_removal.metrics.statistics import summarize
from banding_removal.processes.launch import launch
from banding_removal.runs.build import choose_device
from banding_removal.runs.resume import completed_run
from banding_removal.training.loop import train
from benchmarks.brain import write_brains
from benchmarks.efficacy_recipes import FROM_SCRATCH, RECIPES, SIZES, stage_1, stage_2

BEFORE = "stage 1"
# Of volumes for training (of stage 1 and stage 2), to choose recipes by, and for reported metrics.
SEEDS = {"phantom": 0, "varied": 100, "chosen": 1000, "final": 6000}


@dataclass(frozen=True, kw_only=True)
class Efficacy:
    """What is run."""

    folder: Path = REPOSITORY / "datasets" / "efficacy"
    size: str = "96"
    seeds: tuple[int, ...] = (0,)
    recipes: tuple[str, ...] = ("control", "direct")
    epochs: int | None = None  # of each run, instead of its own; best with a folder of its own
    varied: bool = True  # stage 2 on twice as many volumes that vary, for the same number of steps
    volumes: Literal["chosen", "final"] = "chosen"
    volume_count: int = 8  # to measure on
    probe: bool = True
    template: Path | None = None  # of size=brain: see benchmarks/brain.py
    jobs: int = 2  # seeds side by side, each on one core; also volumes
    # After these, which begin with the making of data, runs save their state and stop; null: never.
    minutes: float | None = None
    device: str = "cpu"  # to train, reconstruct and probe on
    child: bool = False  # the benchmark's own processes

    def __post_init__(self) -> None:
        unknown = [name for name in self.recipes if name not in RECIPES]
        if unknown:
            raise ConfigError(f"{', '.join(unknown)}: none of {', '.join(RECIPES)}")
        if self.size not in SIZES:
            raise ConfigError(f"size {self.size}: none of {', '.join(SIZES)}")
        if self.varied and SIZES[self.size].brain:
            raise ConfigError("size=brain needs varied=false: only the phantom varies")
        counts = (self.jobs, self.volume_count, len(self.seeds))
        if min(*counts, 1 if self.epochs is None else self.epochs) < 1:
            raise ConfigError("jobs, volume_count, epochs and the number of seeds must be positive")


def run_seed(settings: Efficacy, seed: int) -> None:
    """Stage 1 and the recipes of a seed, and a row for each."""
    torch.set_num_threads(1)
    rows = settings.folder / "rows" / f"{settings.size}-{seed}.jsonl"
    rows.parent.mkdir(parents=True, exist_ok=True)
    logs = settings.folder / f"{settings.size}-{seed}"
    workers = 0 if settings.device == "cpu" else 4
    where: dict[str, Any] = {"logs": logs, "device": settings.device, "workers": workers}
    if settings.epochs is not None:
        where["epochs"] = settings.epochs
    same, varied = (settings.folder / f"{name}-{settings.size}" for name in ("phantom", "varied"))

    before = _trained(replace(stage_1(settings.size, seed), **where, data_path=same))
    runs = {BEFORE: before}
    for recipe in settings.recipes:
        _judge(settings, seed, runs, rows)
        of_recipe = stage_2(recipe, settings.size, seed)
        of_recipe = replace(of_recipe, name=recipe, **where, data_path=same)
        if recipe not in FROM_SCRATCH:
            of_recipe = replace(of_recipe, init_from=str(before))
            if settings.varied:
                share = of_recipe.epoch_fraction / 2
                of_recipe = replace(of_recipe, data_path=varied, epoch_fraction=share)
        runs[recipe] = _trained(of_recipe)
    _judge(settings, seed, runs, rows)


def _trained(settings: Settings) -> Path:
    """The folder of the complete run; a signal saves it first."""
    return completed_run(settings) or launch(train, settings)


def _judge(settings: Efficacy, seed: int, runs: dict[str, Path], rows: Path) -> None:
    """Write a row for each run that has none on these volumes."""
    known = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    device = choose_device(settings.device)
    for recipe, run in runs.items():
        key = {
            "size": settings.size,
            "seed": seed,
            "recipe": recipe,
            "varied": settings.varied,
            "run": run.name,
            "volumes": settings.volumes,
            "volumes_seed": SEEDS[settings.volumes],
            "volume_count": settings.volume_count,
            "probe": settings.probe,
        }
        if any(key.items() <= row.items() for row in known):
            continue
        folder = settings.folder / f"{settings.volumes}-{settings.size}" / "multicoil_val"
        files = index_folder(folder, cache_folder=settings.folder / "index")
        one = path_set(recipe, run, files, slice_range=(None, None), device=device)
        found = evaluate(
            [one],
            reference_volumes(files),
            probe_steps=300 if settings.probe else None,
            device=device,
        )
        row = {**key, **_of_run(run), "figures": metrics_of(found.sets[0])}
        with rows.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _of_run(run: Path) -> dict[str, Any]:
    """Steps, the milliseconds of one, the adversary's accuracy at the end, and rollbacks."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "step_ms" in line]
    last = steps[-1]
    return {
        "steps": last["step"],
        "step_ms": statistics.median(line["step_ms"] for line in steps),
        "accuracy": last.get("accuracy_running"),
        "rollbacks": sum(line["kind"] == "rollback" for line in lines),
    }


def metrics_of(result: SetResult) -> dict[str, float | None]:
    """All metrics of a set, with those of the end slices of its volumes; None: not measurable."""
    metrics = {name: metric.value for name, metric in result.overall.metrics.items()}
    ends = [volume.slices[place].banding for volume in result.volumes for place in (0, -1)]
    summary = summarize([banding for banding in ends if banding is not None]).low_signal
    for name in ("contribution", "signed_excess", "along", "across"):
        metrics[f"ends.{name}"] = getattr(summary, name).value
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}


def main(words: list[str]) -> None:
    """Make the data, then run each seed in a process of its own."""
    settings = from_words(Efficacy(), words)
    if settings.child:
        run_seed(settings, settings.seeds[0])
        return
    begun = time.monotonic()
    size = SIZES[settings.size]
    for name in ("phantom", "varied", settings.volumes):
        seed = SEEDS[name]
        folder = settings.folder / f"{name}-{settings.size}"
        counts: dict[str, Any] = {"train_volumes": 0, "val_volumes": settings.volume_count}
        if name == "phantom":
            counts = {"train_volumes": size.train_volumes, "val_volumes": 2}
        if name == "varied":
            if settings.varied:
                counts = {"train_volumes": 2 * size.train_volumes, "val_volumes": 2}
                write_dataset(
                    folder, size.phantom, **counts, seed=seed, vary=True, jobs=settings.jobs
                )
        elif not size.brain:
            write_dataset(folder, size.phantom, **counts, seed=seed, jobs=settings.jobs)
        elif settings.template is None:
            raise ConfigError("size=brain needs template=...: see benchmarks/brain.py")
        else:
            write_brains(folder, size.phantom, settings.template, **counts, seed=seed)

    def start(seed: int) -> int:
        log = settings.folder / f"{settings.size}-{seed}.log"
        child = [*words, f"seeds=[{seed}]", "child=true"]
        how = "complete"
        with (
            log.open("a") as file,
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.efficacy", *child],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=file, stderr=file,
            ) as process,
        ):  # fmt: skip
            try:
                limit = None if settings.minutes is None else 60 * settings.minutes
                code = process.wait(None if limit is None else begun + limit - time.monotonic())
            except subprocess.TimeoutExpired:
                process.terminate()
                code, how = process.wait(), "stopped, to go on with the same command,"
            else:
                how = how if code == 0 else f"failed ({code}): see {log}"
        minutes = (time.monotonic() - begun) / 60
        print(f"size {settings.size}, seed {seed}: {how} after {minutes:.1f} min", flush=True)
        return code

    with ThreadPoolExecutor(settings.jobs) as pool:
        codes = list(pool.map(start, settings.seeds))
    if any(codes):
        sys.exit(1)


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
