"""The validation slices of a run by epoch, in 16 bits, for the run page.

    slices/target.npz       targets
    slices/epoch012.npz     reconstructions along x and along y after epoch 12

    kept = read_slices(Path("logs/run"))
    image = decode(kept.epochs[12].images["x", 0], kept.slices[0].shape) * kept.slices[0].step

Images are encoded by `image_code`. Old epochs are thinned out, so that all files together stay
below a budget, however long the run.
"""

import io
import json
import logging
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from banding_removal.files import atomic_write
from banding_removal.metrics.slice_pair import SlicePair
from banding_removal.pictures.image_code import STEPS, encode
from banding_removal.pictures.validation_grid import ValidatedSlice

log = logging.getLogger(__name__)

FOLDER = "slices"
BUDGET = 14_400_000  # bytes of a run's slices; base64 makes 19.2 MB of a page of them
_TARGET = "target.npz"
_NAME = re.compile(r"epoch(\d+)\.npz")
_DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)

Images = dict[tuple[str, int], bytes]  # encoded; by kind (target, x, y) and position of the slice


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
        folder: of the run.
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
    changed = not (kept / _TARGET).exists() or _about(kept / _TARGET) != json.loads(about)
    for number, path in _epoch_files(kept).items():
        if changed or number > epoch:
            path.unlink()
    if changed:
        targets = {
            ("target", i): encode(s.pair.target, _step(s.pair)) for i, s in enumerate(slices)
        }
        _write(kept / _TARGET, about, targets)
    metrics = json.dumps([_metrics(item) for item in slices])
    _write(kept / f"epoch{epoch:03d}.npz", metrics, images)
    _thin(kept, budget)


def read_slices(folder: Path) -> KeptSlices:
    """The slices in a run's folder; none if it has none. Damaged files are left out and logged."""
    kept = folder / FOLDER
    found = KeptSlices(slices=[], targets={}, epochs={})
    try:
        about, targets = _read(kept / _TARGET)
        infos = [SliceInfo(**{**item, "shape": tuple(item["shape"])}) for item in about]
    except FileNotFoundError:
        return found
    except _DAMAGED as error:
        log.warning("%s is damaged (%s): the page has no slices", kept / _TARGET, error)
        return found
    found.slices.extend(infos)
    found.targets.update(targets)
    for number, path in _epoch_files(kept).items():
        try:
            metrics, images = _read(path)
        except _DAMAGED as error:
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


def _thin(kept: Path, budget: int) -> None:
    """Keep all files below the budget.

    The first epoch and the last two stay as they are. All others first lose slices, then go where
    they lie densest; at the beginning of a run, they end up about five times as far apart as at its
    end.
    """
    files = _epoch_files(kept)
    size = (kept / _TARGET).stat().st_size + sum(path.stat().st_size for path in files.values())
    for number in [*files][1:-2]:
        if size <= budget:
            return
        size -= _reduce(files[number])
    while size > budget and len(files) > 3:
        epochs = [*files]
        gaps = {
            here: (after - before) / (1.25 * epochs[-1] - here)
            for before, here, after in zip(epochs, epochs[1:], epochs[2:-1], strict=False)
        }
        path = files.pop(min(gaps, key=lambda number: gaps[number]))
        size -= path.stat().st_size
        path.unlink()


def _reduce(path: Path) -> int:
    """Leave two slices of an epoch: the first one and one from the middle; returns bytes saved."""
    with _opened(path) as content:
        positions = {int(key[2:]) for key in content.files if key != "about"}
    if len(positions) <= 2:
        return 0
    before = path.stat().st_size
    metrics, images = _read(path)
    followed = (0, len(metrics) // 2)
    _write(path, json.dumps(metrics), {key: images[key] for key in images if key[1] in followed})
    return before - path.stat().st_size


def _epoch_files(kept: Path) -> dict[int, Path]:
    """The files of epochs, in their order."""
    matches = ((path, _NAME.fullmatch(path.name)) for path in kept.glob("epoch*.npz"))
    return dict(sorted((int(match[1]), path) for path, match in matches if match))


def _about(path: Path) -> Any:
    """What a file says of itself; None if it is damaged, and is written again."""
    try:
        with _opened(path) as content:
            return json.loads(str(content["about"]))
    except _DAMAGED:
        return None


def _read(path: Path) -> tuple[Any, Images]:
    with _opened(path) as content:
        about = json.loads(str(content["about"]))
        names = [name.rpartition("_") for name in content.files if name != "about"]
        images = {(kind, int(i)): content[f"{kind}_{i}"].tobytes() for kind, _, i in names}
    return about, images


def _opened(path: Path) -> Any:
    """A file's arrays; pickled objects are refused. Read whole: numpy leaves damaged files open."""
    return np.load(io.BytesIO(path.read_bytes()))


def _write(path: Path, about: str, images: Mapping[tuple[str, int], bytes]) -> None:
    arrays = {
        f"{kind}_{position}": np.frombuffer(stream, np.uint8)
        for (kind, position), stream in images.items()
    }
    buffer = io.BytesIO()
    np.savez(buffer, about=np.array(about), **arrays)  # type: ignore[arg-type]
    atomic_write(path, buffer.getbuffer())
