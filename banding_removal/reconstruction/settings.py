"""The settings of `scripts/reconstruct.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from banding_removal.config.settings import REPOSITORY
from banding_removal.errors import ConfigError


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
    window: float = 0.25  # white of the low-signal pictures, of the volume's largest value
    device: str = "auto"
    nproc: int | None = None  # processes on this machine; null: one per visible GPU, or one
    timeout_minutes: float = 1440.0  # longest wait at the end for the slowest process

    def __post_init__(self) -> None:
        for name in ("window", "nproc", "timeout_minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be positive and finite, got {value}")
