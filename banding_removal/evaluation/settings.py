"""Settings of an evaluation, and the way from its paths to its files."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from banding_removal.config.overrides import plain
from banding_removal.config.settings import REPOSITORY
from banding_removal.data.filters import VolumeFilter
from banding_removal.data.index import index_folder
from banding_removal.data.volume import Volume
from banding_removal.errors import ConfigError
from banding_removal.evaluation.evaluate import evaluate
from banding_removal.evaluation.image_sets import path_set, reference_volumes
from banding_removal.evaluation.report import claim_output, write_report
from banding_removal.processes.threads import set_threads
from banding_removal.runs.build import choose_device
from banding_removal.runs.datasets import usable_volumes

log = logging.getLogger(__name__)


class VolumeChoice(Protocol):
    """The settings that `choose_volumes` reads."""

    @property
    def volumes(self) -> Path:
        """Folder of HDF5 files with targets."""

    @property
    def filter(self) -> VolumeFilter:
        """Which of the volumes are used."""

    @property
    def slices(self) -> tuple[int | None, int | None]:
        """Of each volume, [first, stop); None: from its first, to its last."""

    @property
    def skip_bad_volumes(self) -> bool:
        """Leave out unusable files with a warning."""

    @property
    def logs(self) -> Path:
        """Folder where the index of the volumes is kept."""

    @property
    def seed(self) -> int:
        """Seed of the filter's random fraction."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """What to evaluate."""

    # name: a run's folder or checkpoint, public weights, or a folder with reconstructions
    # (x/*.h5, y/*.h5)
    sets: dict[str, Path] = field(default_factory=dict)
    # package.module:Class of each checkpoint whose predictor is code of your own
    predictors: tuple[str, ...] = ()
    volumes: Path = REPOSITORY / "datasets" / "phantom" / "multicoil_val"  # files with targets
    filter: VolumeFilter = field(default_factory=VolumeFilter)
    slices: tuple[int | None, int | None] = (None, None)  # of each volume, [first, stop)
    skip_bad_volumes: bool = False  # leave out unusable files with a warning
    output: Path = REPOSITORY / "logs" / "evaluation"
    logs: Path = REPOSITORY / "logs"  # the index of the volumes is kept there
    probe: bool = True  # train the classifiers of both probes: about two minutes a set
    probe_steps: int = 300  # optimiser steps of each classifier
    device: str = "auto"
    seed: int = 0  # of probes, resampling and filter.fraction

    def __post_init__(self) -> None:
        if self.probe_steps < 1 or self.seed < 0:
            raise ConfigError("probe_steps must be positive, seed must not be negative")


def evaluate_files(settings: EvaluateSettings) -> str:
    """Evaluate the sets and write the files; returns the tables.

    Raises:
        ConfigError: no set is named, a path is missing, or filters leave no volume.
        CheckpointError: a checkpoint cannot be used.
        VolumeError: volumes or reconstructions cannot be used; all are named.
        FileNotFoundError: the folder of volumes is missing or empty.
        FloatingPointError: a reconstruction is not finite.
    """
    if not settings.sets:
        raise ConfigError("name one set or more: 'sets={pretrained: logs/pretrain}'")
    device = choose_device(settings.device)
    claim_output(settings.output)
    files = choose_volumes(settings)
    set_threads(files)
    references = reference_volumes(files)
    sets = [
        path_set(
            name,
            path,
            files,
            slice_range=settings.slices,
            device=device,
            named=settings.predictors,
        )
        for name, path in settings.sets.items()
    ]
    evaluation = evaluate(
        sets,
        references,
        probe_steps=settings.probe_steps if settings.probe else None,
        device=device,
        seed=settings.seed,
    )
    return write_report(settings.output, evaluation, plain(settings))


def choose_volumes(settings: VolumeChoice) -> list[Volume]:
    """The volumes that pass the filter and have at least one of the chosen slices.

    Raises:
        ConfigError: filter or slices leave no volume.
        FileNotFoundError: the folder is missing or empty.
        VolumeError: files in it cannot be used; all are named.
    """
    skip_bad = settings.skip_bad_volumes
    files = index_folder(settings.volumes, cache_folder=settings.logs / "index", skip_bad=skip_bad)
    files = usable_volumes(files, skip_bad=skip_bad)
    try:
        files = settings.filter.apply(files, settings.seed)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    kept = [file for file in files if range(file.slices)[slice(*settings.slices)]]
    if not kept:
        raise ConfigError(f"none of {len(files)} volumes has any of the slices {settings.slices}")
    if len(kept) < len(files):
        left_out = len(files) - len(kept)
        log.warning("left out: %d volumes have none of the slices %s", left_out, settings.slices)
    return kept
