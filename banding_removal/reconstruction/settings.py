"""The settings of `scripts/reconstruct.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from banding_removal.config.bounds import bounded, check_bounds
from banding_removal.config.settings import REPOSITORY


@dataclass(frozen=True, kw_only=True)
class ReconstructSettings:
    """What to reconstruct, with which checkpoint, and where to write it."""

    # a run's folder, one of its checkpoints, or public weights
    checkpoint: Path = REPOSITORY / "logs" / "run"
    # package.module:Class of each checkpoint whose predictor is code of your own
    predictors: tuple[str, ...] = ()
    volumes: Path = Path("/path/to/fastmri/knee/multicoil_test")  # a folder of *.h5, or one file
    output: Path | None = None  # folder; null: reconstructions/epochNNN/<volumes> in the run's
    # Phase encoding along x, as it was acquired, or along y, transposed; both: in folders x and y.
    orientation: Literal["x", "y", "both"] = "x"
    skip_bad_volumes: bool = False  # begin although some files are unusable
    previews: bool = True  # a page of pictures for each volume
    window: float = bounded(0.25, above=0)  # white of low-signal pictures, of the volume's maximum
    device: str = "auto"
    nproc: int | None = bounded(None, above=0)  # processes; null: one per visible GPU, or one
    timeout_minutes: float = bounded(1440.0, above=0)  # longest wait for the slowest process

    def __post_init__(self) -> None:
        check_bounds(self)
