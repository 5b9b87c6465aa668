"""A trained predictor's banding as one picture: settings, and the way from checkpoint to PNG."""

from dataclasses import dataclass
from pathlib import Path

from banding_removal.config.settings import REPOSITORY
from banding_removal.data.dataset import SliceDataset
from banding_removal.errors import ConfigError
from banding_removal.reconstruction.pairs import reconstruct_both, write_orientation_grid
from banding_removal.runs.build import build_predictor, choose_device, make_datasets
from banding_removal.runs.checkpoint import find_checkpoint, load_checkpoint
from banding_removal.runs.resume import saved_settings


@dataclass(frozen=True, kw_only=True)
class ShowSettings:
    """What to show."""

    checkpoint: Path = REPOSITORY / "logs" / "run"  # a run's folder, or one of its checkpoints
    output: Path | None = None  # of the PNG; null: banding.png in the run's folder
    count: int = 4  # middle slices of this many validation volumes
    slices: tuple[int, ...] = ()  # positions in the validation set, instead of `count`
    window: float = 0.25  # white of the low-signal pictures, of the volume's largest value
    device: str = "auto"


def show(settings: ShowSettings) -> Path:
    """Write the picture; returns its path."""
    path = find_checkpoint(settings.checkpoint)
    checkpoint = load_checkpoint(path)
    trained = saved_settings(path, checkpoint)
    device = choose_device(settings.device)
    predictor = build_predictor(trained, device, checkpoint, path)
    _, validation = make_datasets(trained)
    indices = settings.slices or middle_slices(validation, settings.count)
    outside = [index for index in indices if not 0 <= index < len(validation)]
    if outside:
        raise ConfigError(f"slices {outside} are not among the {len(validation)} of validation")
    volumes = [validation.volumes[validation.places[index][0]] for index in indices]
    measured = [volume.name for volume in volumes if volume.measured is not None]
    if measured or not indices:
        raise ConfigError(
            f"no slices to show: {', '.join(measured) or 'all volumes'} were undersampled by the "
            "scanner and cannot be transposed"
        )
    output = settings.output or path.parent.parent / "banding.png"
    write_orientation_grid(
        output,
        reconstruct_both(predictor, validation, indices, device),
        header=[
            f"{path.parent.parent.name}, epoch {checkpoint.epoch}: the same slices, undersampled "
            f"along x and along y. Low signal: white at {settings.window:.0%} of the volume's "
            f"maximum. Streaks: along x in the third column, along y in the fourth."
        ],
        window=settings.window,
    )
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
