"""The validation slices of a run by epoch, in 16 bits, for the run page.

    slices/target.npz       targets
    slices/epoch012.npz     reconstructions along x and along y after epoch 12

    kept = read_slices(Path("logs/run"))
    image = decode(kept.epochs[12].images["x", 0], kept.slices[0].shape) * kept.slices[0].step

Images are encoded by `image_code`. Old epochs are thinned out, so that all files together stay
below a budget, however long the run.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from banding_removal.metrics.slice_pair import SlicePair
from banding_removal.pictures.image_code import STEPS, encode
from banding_removal.pictures.slice_files import (
    DAMAGED,
    Images,
    epoch_files,
    read_about,
    read_file,
    write_file,
)
from banding_removal.pictures.thinning import thin_out
from banding_removal.pictures.validation_grid import ValidatedSlice

log = logging.getLogger(__name__)

FOLDER = "slices"
BUDGET = 14_400_000  # bytes of a run's slices; base64 makes 19.2 MB of a page of them
_TARGET = "target.npz"


@dataclass(frozen=True, kw_only=True)
class SliceInfo:
    """What does not change from epoch to epoch."""

    volume: str
    slice_index: int
    acquisition: str
    shape: tuple[int, int]
    data_range: float  # largest target value of the volume
    scale: float  # q, the 99.5th percentile of the volume's target
    step: float  # an image is its counts times this


@dataclass(frozen=True, kw_only=True)
class KeptEpoch:
    """Reconstructions after an epoch; old epochs have fewer slices."""

    metrics: list[dict[str, float | None]]  # of each slice; None: not measurable
    images: Images


@dataclass(frozen=True, kw_only=True)
class KeptSlices:
    """What a run's folder holds."""

    slices: list[SliceInfo]
    targets: Images
    epochs: dict[int, KeptEpoch]  # in their order


def keep_slices(
    folder: Path, epoch: int, slices: Sequence[ValidatedSlice], budget: int = BUDGET
) -> None:
    """Add an epoch's slices to a run's folder, and thin out earlier epochs.

    Epochs after this one, which a rollback has undone, are removed, and so is everything if other
    slices are shown than before.

    Args:
        folder: the run's; slices are kept in a folder within it.
        epoch: counted from 1.
        slices: the first of them are kept, as many as fit into a quarter of the budget.
        budget: bytes of all files.

    Raises:
        OSError: a file cannot be written.
    """
    kept = folder / FOLDER
    kept.mkdir(parents=True, exist_ok=True)
    images: Images = {}
    for position, item in enumerate(slices):
        more = _encoded(item.pair, position)
        size = sum(map(len, [*images.values(), *more.values()]))
        if position and size > budget // 4:
            slices = slices[:position]
            break
        images |= more
    about = json.dumps([asdict(_info(item.pair)) for item in slices])
    changed = not (kept / _TARGET).exists() or read_about(kept / _TARGET) != json.loads(about)
    for number, path in epoch_files(kept).items():
        if changed or number > epoch:
            path.unlink()
    if changed:
        targets = {
            ("target", i): encode(s.pair.target, _step(s.pair)) for i, s in enumerate(slices)
        }
        write_file(kept / _TARGET, about, targets)
    metrics = json.dumps([_metrics(item) for item in slices])
    write_file(kept / f"epoch{epoch:03d}.npz", metrics, images)
    thin_out(kept, kept / _TARGET, len(slices), budget)


def read_slices(folder: Path) -> KeptSlices:
    """The slices in a run's folder; none if it has none. Damaged files are left out and logged."""
    kept = folder / FOLDER
    found = KeptSlices(slices=[], targets={}, epochs={})
    try:
        about, targets = read_file(kept / _TARGET)
        infos = [SliceInfo(**{**item, "shape": tuple(item["shape"])}) for item in about]
    except FileNotFoundError:
        return found
    except DAMAGED as error:
        log.warning("%s is damaged (%s): the page has no slices", kept / _TARGET, error)
        return found
    found.slices.extend(infos)
    found.targets.update(targets)
    for number, path in epoch_files(kept).items():
        try:
            metrics, images = read_file(path)
        except DAMAGED as error:
            log.warning("%s is damaged and left out of the page: %s", path, error)
            continue
        found.epochs[number] = KeptEpoch(metrics=metrics, images=images)
    return found


def _encoded(pair: SlicePair, position: int) -> Images:
    views = {"x": pair.along_x, "y": pair.along_y}
    return {
        (kind, position): encode(image, _step(pair))
        for kind, image in views.items()
        if image is not None
    }


def _info(pair: SlicePair) -> SliceInfo:
    height, width = pair.target.shape
    return SliceInfo(
        volume=pair.name,
        slice_index=pair.slice_index,
        acquisition=pair.acquisition,
        shape=(height, width),
        data_range=pair.data_range,
        scale=pair.scale,
        step=_step(pair),
    )


def _step(pair: SlicePair) -> float:
    return (pair.data_range or 1.0) / STEPS


def _metrics(item: ValidatedSlice) -> dict[str, float | None]:
    region = None if item.banding is None else item.banding.low_signal
    values = {
        "ssim": item.quality.ssim,
        "nmse": item.quality.nmse,
        "banding": float("nan") if region is None else region.contribution,
        "signed_excess": float("nan") if region is None else region.signed_excess,
    }
    return {key: value if np.isfinite(value) else None for key, value in values.items()}
