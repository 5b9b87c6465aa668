"""Named sets of reconstructions to evaluate: of a checkpoint, from files, or in memory.

    volumes = reference_volumes(files)
    path_set("pretrained", Path("logs/pretrain"), files, slice_range=(None, None), device=device)
    ImageSet(name="blurred", origin="pretrained, blurred", slices=[SlicePair(...), ...])

A set yields its slices volume by volume, so that only one of them need be in memory. For files, see
`image_files`. A folder with images of both orientations has `x/` (phase encoding along x, the last
axis, as it was acquired) and `y/` (k-space transposed before undersampling, images transposed
back); a folder of files has phase encoding along x alone.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from banding_removal.data.dataset import SliceDataset
from banding_removal.data.masks import MaskSampler
from banding_removal.data.volume import SUFFIX, Volume, VolumeError, volume_paths
from banding_removal.errors import ConfigError
from banding_removal.evaluation.image_files import check_files, read_targets, slice_of_file
from banding_removal.metrics.low_signal import volume_scale
from banding_removal.metrics.slice_pair import SlicePair
from banding_removal.reconstruction.pairs import reconstruct_pairs
from banding_removal.runs.checkpoint import FOLDER, find_checkpoint
from banding_removal.runs.folder import in_latest
from banding_removal.runs.trained import Trained, load_trained

SliceRange = tuple[int | None, int | None]  # [first, stop); None: from the first, to the last


@dataclass(frozen=True, kw_only=True)
class ReferenceVolume:
    """What is known of a volume beside its images."""

    name: str
    acquisition: str
    scanner: str
    group: str  # scanner_acquisition
    data_range: float  # largest value of the target
    scale: float  # q, the 99.5th percentile of the target


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Reconstructions under one name."""

    name: str
    origin: str  # a path, or how they were made
    slices: Iterable[SlicePair]  # larger images than the target are cropped


def reference_volumes(files: Sequence[Volume]) -> list[ReferenceVolume]:
    """The references of files with targets.

    Raises:
        VolumeError: files have no target (all are named), or a target is not finite.
    """
    without = [f"{file.path}: has no target image" for file in files if file.target_key is None]
    if without:
        raise VolumeError.of_all(without)
    return [
        ReferenceVolume(
            name=file.name,
            acquisition=file.acquisition,
            scanner=file.scanner,
            group=file.group,
            data_range=_data_range(file),
            scale=volume_scale(read_targets(file)),
        )
        for file in files
    ]


def path_set(
    name: str,
    path: Path,
    files: Sequence[Volume],
    *,
    slice_range: SliceRange,
    device: torch.device,
    masks: MaskSampler | None = None,
    only: Collection[tuple[str, int]] | None = None,
    named: Sequence[str] = (),
) -> ImageSet:
    """The set at a path: a run's folder, a checkpoint, or a folder of reconstructions.

    Everything that can be checked without reading pixels is checked here, before hours of work.

    Args:
        name: of the set.
        path: see above.
        files: with targets; each with at least one slice in the range.
        slice_range: slices of each volume.
        device: to reconstruct on.
        masks: undersampling for a checkpoint; None: that of its own validation.
        only: (file name, slice) of the slices to yield; None: all in the range.
        named: predictors package.module:Class that a checkpoint may have.

    Raises:
        ConfigError: the path does not exist or holds no reconstructions, or the masks do not fit
            the volumes, or are given for reconstructions.
        CheckpointError: the checkpoint cannot be used.
        VolumeError: reconstructions are missing or do not fit the volumes; all are named.
    """
    path = in_latest(path.expanduser())
    if not path.exists():
        raise ConfigError(f"set {name!r}: {path} does not exist")
    if path.is_file() or (path / FOLDER).is_dir():
        path = find_checkpoint(path)
        trained = load_trained(path, device, named)
        slices = _checkpoint_slices(trained, files, slice_range, device, masks, only)
        return ImageSet(name=name, origin=str(path), slices=slices)
    if masks is not None:
        raise ConfigError(f"set {name!r}: masks are for checkpoints, but {path} is not one")
    folder_x, folder_y = path, None
    if (path / "x").is_dir():
        folder_x, folder_y = path / "x", path / "y" if (path / "y").is_dir() else None
    if not volume_paths(folder_x):
        raise ConfigError(
            f"set {name!r}: {path} is neither a run's folder ({FOLDER}/*.pt) nor one of "
            f"reconstructions (x/*{SUFFIX} and y/*{SUFFIX}, or *{SUFFIX})"
        )
    problems = check_files(files, [folder for folder in (folder_x, folder_y) if folder])
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise VolumeError(f"set {name!r} does not fit the volumes:\n{lines}")
    slices = _file_slices(files, slice_range, folder_x, folder_y, only)
    return ImageSet(name=name, origin=str(path), slices=slices)


def _checkpoint_slices(
    trained: Trained,
    files: Sequence[Volume],
    slice_range: SliceRange,
    device: torch.device,
    masks: MaskSampler | None,
    only: Collection[tuple[str, int]] | None,
) -> Iterator[SlicePair]:
    """Reconstructions by a checkpoint's predictor; the masks are checked at once."""
    settings = trained.settings
    masks = masks or settings.mask_sampler()
    for file in files:
        for width in {file.width, file.height}:
            try:
                masks.check(width)
            except ValueError as error:
                raise ConfigError(f"{trained.path} on {file.name}: {error}") from error
    datasets = [
        SliceDataset(
            [file],
            masks,
            seed=settings.seed,
            offsets_from_data=settings.offsets_from_data,
            slice_range=slice_range,
        )
        for file in files
    ]

    def slices() -> Iterator[SlicePair]:
        for dataset in datasets:
            indices = [
                index
                for index, (volume, number) in enumerate(dataset.places)
                if only is None or (dataset.volumes[volume].name, number) in only
            ]
            yield from reconstruct_pairs(trained.predictor, dataset, indices, device)
            dataset.close()

    return slices()


def _file_slices(
    files: Sequence[Volume],
    slice_range: SliceRange,
    folder_x: Path,
    folder_y: Path | None,
    only: Collection[tuple[str, int]] | None,
) -> Iterator[SlicePair]:
    """Reconstructions from files, read one slice at a time."""
    for file in files:
        targets = read_targets(file)
        scale = volume_scale(targets)
        for index in range(file.slices)[slice(*slice_range)]:
            if only is not None and (file.name, index) not in only:
                continue
            yield SlicePair(
                name=file.name,
                slice_index=index,
                acquisition=file.acquisition,
                data_range=_data_range(file),
                scale=scale,
                target=torch.from_numpy(targets[index]),
                along_x=slice_of_file(folder_x / file.name, index),
                along_y=slice_of_file(folder_y / file.name, index) if folder_y else None,
                why_no_along_y="" if folder_y else "no folder y: phase encoding along x alone",
            )


def _data_range(file: Volume) -> float:
    assert file.data_range is not None, "a file with targets has their maximum"
    return file.data_range
