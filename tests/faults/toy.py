"""Toy runs of both stages, for faults: their data, folders and commands.

They run scripts/pretrain_dev.py and scripts/train_dev.py on a small phantom.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from banding_removal.config.settings import REPOSITORY
from banding_removal.data.phantom.spec import DEMO
from banding_removal.errors import CheckpointError
from banding_removal.runs.checkpoint import find_checkpoint, load_checkpoint
from banding_removal.runs.metrics_file import read_rows

EVERY = 5  # steps between checkpoints

PHANTOM = replace(
    DEMO, kspace_size=(32, 32), target_size=(24, 24), coils=2, acquired=(1, 30), slices=4
)

SMALL = (
    *("device=cpu", "cascades=1", "chans=2", "pools=1", "sens_chans=2", "acs_lines=[6]"),
    *(
        "nproc=1",
        "workers=0",
        "log_every=1",
        "grid_slices=2",
        f"checkpoint_every={EVERY}",
        "dropout=0.1",
    ),
    *("train_filter.magnet=null", "val_filter.magnet=null"),
)

STAGES = {
    1: ("pretrain_dev.py", "pretrain_dev", ()),
    2: (
        "train_dev.py",
        "train_dev",
        (
            *("epoch_fraction=1", "validate_every=1", "grid_every=1"),
            *("adversary=simple", "adversary_chans=8", "paired=true", "adversary_replay=4"),
            "adversary_pretrain_steps=4",
        ),
    ),
}


class FaultError(Exception):
    """A run did not react to a fault as it should."""


def expect(condition: bool, otherwise: str) -> None:
    """Check a condition.

    Raises:
        FaultError: it is false.
    """
    if not condition:
        raise FaultError(otherwise)


@dataclass(frozen=True, kw_only=True)
class Toy:
    """A run of one stage: a folder with its data and logs, and the words of its command."""

    folder: Path
    stage: int = 1
    nproc: int = 1
    words: tuple[str, ...] = ()
    slices: int = PHANTOM.slices  # of each of its three volumes

    @property
    def data(self) -> Path:
        """The phantom data set."""
        return self.folder / "data"

    @property
    def logs(self) -> Path:
        """The folder of runs."""
        return self.folder / "logs"

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.logs / STAGES[self.stage][1]

    @property
    def log(self) -> str:
        """Content of log.txt."""
        return (self.run / "log.txt").read_text()

    def command(self, *words: str) -> list[str]:
        """The script and its settings; those given here override the toy's own."""
        script, _, of_stage = STAGES[self.stage]
        places = (f"data_path={self.data}", f"logs={self.logs}", f"nproc={self.nproc}")
        return [str(REPOSITORY / "scripts" / script), *SMALL, *of_stage, *places, *self.words,
                *words]  # fmt: skip

    def step(self) -> int:
        """Step of the newest row of metrics; 0 if there is none."""
        return max((row["step"] for row in read_rows(self.run / "metrics.jsonl")), default=0)

    def saved(self) -> int:
        """Step of the newest intact checkpoint; 0 if there is none."""
        try:
            return load_checkpoint(find_checkpoint(self.run)).step
        except CheckpointError:
            return 0
