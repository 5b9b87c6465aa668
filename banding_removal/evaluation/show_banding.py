"""The banding of a trained predictor as one picture."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from banding_removal.config.bounds import bounded, check_bounds
from banding_removal.config.settings import REPOSITORY
from banding_removal.data.dataset import SliceDataset
from banding_removal.errors import ConfigError
from banding_removal.metrics.banding import banding_of_slice
from banding_removal.metrics.slice_pair import SlicePair
from banding_removal.pictures.page import (
    MOST_TEXTURE,
    Row,
    colour_bar,
    grey,
    texture,
    write_page,
)
from banding_removal.processes.threads import set_threads
from banding_removal.reconstruction.pairs import reconstruct_pairs
from banding_removal.runs.build import choose_device
from banding_removal.runs.checkpoint import FOLDER, find_checkpoint
from banding_removal.runs.datasets import make_datasets
from banding_removal.runs.trained import load_trained


@dataclass(frozen=True, kw_only=True)
class ShowSettings:
    """What to show."""

    # a run's folder, one of its checkpoints, or public weights
    checkpoint: Path = REPOSITORY / "logs" / "run"
    # package.module:Class of each checkpoint whose predictor is code of your own
    predictors: tuple[str, ...] = ()
    data_path: Path | None = None  # as in training; null: the data that the checkpoint names
    output: Path | None = None  # of the PNG; null: banding.png in the folder of run or weights
    count: int = bounded(4, above=0)  # show the middle slices of this many validation volumes
    slices: tuple[int, ...] = ()  # or these positions in the validation set
    window: float = bounded(0.25, above=0)  # white of low-signal pictures, of the volume's maximum
    skip_bad_volumes: bool = False  # leave out unusable files, also if the training did not
    device: str = "auto"

    def __post_init__(self) -> None:
        check_bounds(self)


def show(settings: ShowSettings) -> Path:
    """Reconstruct slices along x and along y, and write the picture; returns its path.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
        ConfigError: a slice does not exist, or the scanner undersampled all volumes.
    """
    path = find_checkpoint(settings.checkpoint)
    device = choose_device(settings.device)
    trained = load_trained(path, device, settings.predictors)
    chosen = replace(
        trained.settings,
        data_path=settings.data_path or trained.settings.data_path,
        skip_bad_volumes=settings.skip_bad_volumes or trained.settings.skip_bad_volumes,
    )
    _, validation = make_datasets(chosen)
    set_threads(validation.volumes)
    indices = _slices_to_show(settings, validation)
    run = path.parent.parent if path.parent.name == FOLDER else path.parent
    name = run.name if path.parent.name == FOLDER else path.name
    header = (
        f"{name}, epoch {trained.checkpoint.epoch}: the same slices, undersampled along x and "
        f"along y. Low signal: white at {settings.window:.0%} of the volume's maximum. Texture: "
        f"the image minus its blur, over the local noise level. Streaks: along x in the third "
        f"column, along y in the fourth."
    )
    pairs = [
        pair.to(torch.device("cpu"))
        for pair in reconstruct_pairs(trained.predictor, validation, indices, device)
    ]
    rows = [row for pair in pairs for row in _rows(pair, settings.window)]
    output = settings.output or run / "banding.png"
    write_page(output, rows, [header], _table(pairs))
    return output


def middle_slices(dataset: SliceDataset, count: int) -> list[int]:
    """Positions of the middle slices of `count` fully sampled volumes, spread over the data set."""
    by_volume: dict[int, list[int]] = {}
    for index, (volume, _) in enumerate(dataset.places):
        if dataset.volumes[volume].measured is None:
            by_volume.setdefault(volume, []).append(index)
    middles = [indices[len(indices) // 2] for indices in by_volume.values()]
    count = min(count, len(middles))
    return [middles[i * len(middles) // count] for i in range(count)]


def _slices_to_show(settings: ShowSettings, dataset: SliceDataset) -> Sequence[int]:
    indices = settings.slices or middle_slices(dataset, settings.count)
    outside = [index for index in indices if not 0 <= index < len(dataset)]
    if outside:
        raise ConfigError(f"no slices {outside}: validation has {len(dataset)}, counted from 0")
    volumes = [dataset.volumes[dataset.places[index][0]] for index in indices]
    measured = [volume.name for volume in volumes if volume.measured is not None]
    if measured or not indices:
        raise ConfigError(
            f"no slices to show: {', '.join(measured) or 'all volumes'} were undersampled by the "
            "scanner and cannot be transposed"
        )
    return indices


def _rows(pair: SlicePair, window: float) -> list[Row]:
    """Target | target, low signal | reconstruction along x | along y; and their textures."""
    assert pair.along_y is not None, "the volume was fully sampled"
    white = pair.data_range * window
    pictures = {
        "target": grey(pair.target, 0, float(pair.target.max()) or 1.0),
        "target, low signal": grey(pair.target, 0, white),
        "phase encode along x, low signal": grey(pair.along_x, 0, white),
        "phase encode along y, low signal": grey(pair.along_y, 0, white),
    }
    labels = (f"-{MOST_TEXTURE:g} noise levels", "0", f"{MOST_TEXTURE:g} noise levels")
    textures = {
        "texture": colour_bar(*labels, column=pictures["target"]),
        "target, texture": texture(pair.target),
        "phase encode along x, texture": texture(pair.along_x),
        "phase encode along y, texture": texture(pair.along_y),
    }
    return [
        Row(pictures, f"{pair.name} slice {pair.slice_index}", smooth=True),
        Row(textures, smooth=True),
    ]


def _table(pairs: Sequence[SlicePair]) -> list[list[str]]:
    """B and signed excess of each slice."""
    lines = [["slice", "banding (dB)", "signed excess (%)"]]
    for pair in pairs:
        found = banding_of_slice(pair.along_x, pair.along_y, pair.target, scale=pair.scale)
        region = found.low_signal
        values = [f"{region.contribution:.2f}", f"{region.signed_excess:.2f}"]
        if region.reason:
            values = ["not measurable", region.reason]
        lines.append([f"{pair.name} slice {pair.slice_index}", *values])
    return lines
