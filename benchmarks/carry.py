"""Runs in small files, to go on with them on another machine.

    python -m benchmarks.carry runs=datasets/efficacy/paper-0 to=carried
    cp -r carried/* datasets/efficacy/paper-0/             (there; then the same command again)
    rm -r carried                                          (before runs are copied again)

Of each run in a folder: its newest checkpoint in half precision, what it has logged, and nothing
else. Weights are float16. What belongs to optimisers is bfloat16, and left out of a run that is
complete. With the published network and Muon, these are 52 MB and 26 MB instead of 103 (computed
from the number of weights). A run that goes on from such a file is not the same to the last digit.
It goes on only where its paths are the same: begin with relative ones, in the repository.
"""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from banding_removal.command_line import user_errors
from banding_removal.config.overrides import from_words
from banding_removal.errors import ConfigError
from banding_removal.runs.checkpoint import (
    FOLDER,
    Checkpoint,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from banding_removal.runs.metrics_file import METRICS

LARGEST = 2**20  # bytes; of files besides metrics and log, only smaller ones are taken along


@dataclass(frozen=True, kw_only=True)
class Carry:
    """What is written where."""

    runs: Path  # a folder of runs
    to: Path  # of the small copies


def in_half(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint in half precision, without optimisers if no epoch is left."""
    state = dict(vars(checkpoint))
    left = checkpoint.epoch < checkpoint.settings["epochs"]
    for key in ("predictor", "adversary"):
        state[key] = _mapped(state[key], lambda x: x.to(torch.float16))
    for key in ("optimizer", "adversary_optimizer", "replay"):
        # Single numbers stay exact: they count steps.
        small = _mapped(state[key], lambda x: x.to(torch.bfloat16) if x.ndim else x)
        state[key] = small if left or state[key] is None else type(small)()
    return Checkpoint(**state)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Plain data with its floating-point tensors changed."""
    if isinstance(value, Tensor):
        return change(value) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, change) for item in value)
    return value


def carry(run: Path, to: Path) -> Path:
    """Write the small copy of a run, whose newest checkpoint's path is returned."""
    shutil.copytree(
        run,
        to,
        symlinks=True,
        ignore=lambda folder, names: [
            name
            for name in names
            if name in (FOLDER, "tensorboard", "grids")
            or (name not in (METRICS, "log.txt") and (Path(folder) / name).stat().st_size > LARGEST)
        ],
    )
    return save_checkpoint(to, in_half(load_checkpoint(find_checkpoint(run))), keep=1)


def main(settings: Carry) -> None:
    """Copy all runs.

    Raises:
        ConfigError: there are none, or the copies would overwrite something.
    """
    found = sorted(settings.runs.iterdir()) if settings.runs.is_dir() else []
    runs = [run for run in found if list_checkpoints(run) and not run.is_symlink()]
    if not runs:
        raise ConfigError(f"{settings.runs} holds no run with a checkpoint")
    for run in runs:
        to = settings.to / run.name
        if to.exists():
            raise ConfigError(f"{to} exists")
        written = carry(run, to)
        print(f"{written}: {written.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    with user_errors():
        main(from_words(Carry(runs=Path(), to=Path()), sys.argv[1:]))
