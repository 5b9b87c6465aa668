"""Settings that name sets of reconstructions and volumes, and what they stand for."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from banding_removal.config.bounds import bounded, check_bounds
from banding_removal.config.settings import REPOSITORY
from banding_removal.data.filters import VolumeFilter
from banding_removal.data.index import index_folder
from banding_removal.data.volume import Volume
from banding_removal.errors import ConfigError
from banding_removal.evaluation.image_sets import ImageSet, SliceRange, path_set
from banding_removal.runs.datasets import usable_volumes

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SetsSettings:
    """Sets of reconstructions, and the slices on which they are compared."""

    # name: a run's folder or checkpoint, public weights, or a folder with reconstructions
    # (x/*.h5, y/*.h5)
    sets: dict[str, Path] = field(default_factory=dict)
    # package.module:Class of each checkpoint whose predictor is code of your own
    predictors: tuple[str, ...] = ()
    volumes: Path = REPOSITORY / "datasets" / "phantom" / "multicoil_val"  # files with targets
    filter: VolumeFilter = field(default_factory=VolumeFilter)  # which of the volumes are used
    slices: SliceRange = (None, None)  # of each volume, [first, stop)
    skip_bad_volumes: bool = False  # leave out unusable files with a warning
    logs: Path = REPOSITORY / "logs"  # the index of the volumes is kept there
    device: str = "auto"
    seed: int = bounded(0, at_least=0)  # of everything that is drawn, also by filter.fraction

    def __post_init__(self) -> None:
        check_bounds(self)


def choose_volumes(settings: SetsSettings) -> list[Volume]:
    """The volumes that pass the filter and have at least one of the chosen slices.

    Raises:
        ConfigError: no set is named, or filter or slices leave no volume.
        FileNotFoundError: the folder is missing or empty.
        VolumeError: files in it cannot be used; all are named.
    """
    if not settings.sets:
        raise ConfigError("name one set or more: 'sets={pretrained: logs/pretrain}'")
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


def load_sets(
    settings: SetsSettings,
    files: Sequence[Volume],
    device: torch.device,
    *,
    only: Collection[tuple[str, int]] | None = None,
) -> list[ImageSet]:
    """All sets, on these volumes; `only` and what is raised are as in `path_set`."""
    return [
        path_set(
            name,
            path,
            files,
            slice_range=settings.slices,
            device=device,
            only=only,
            named=settings.predictors,
        )
        for name, path in settings.sets.items()
    ]
