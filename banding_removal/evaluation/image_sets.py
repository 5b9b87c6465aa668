"""Named sets of reconstructions to judge: of a checkpoint, of files, or of images in memory.

    volumes = reference_volumes(files)
    path_set("pretrained", Path("logs/pretrain"), files, slice_range=(None, None), device=device)
    ImageSet(name="blurred", origin="pretrained, blurred", slices=[SliceImages(...), ...])

A set is anything that yields its slices' images, volume by volume, so that no more than one volume
need be in memory. Files of other software are in fastMRI's format: one HDF5 file a volume, named
like the volume, with a dataset `reconstruction` [slice, h, w]. Both orientations are a folder with
`x/` (phase encoding along x, the last axis, as it was acquired) and `y/` (the slices transposed
before undersampling, the images transposed back); a plain folder of files has the first alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from banding_removal.config.settings import from_plain
from banding_removal.data.dataset import SliceDataset
from banding_removal.data.hdf5 import READ_ERRORS, check_stored, open_file, own_dataset
from banding_removal.data.volume import SUFFIX, Volume, VolumeError
from banding_removal.errors import ConfigError
from banding_removal.metrics.low_signal import volume_scale
from banding_removal.reconstruction.orientations import reconstruct_both
from banding_removal.runs.build import build_predictor
from banding_removal.runs.checkpoint import FOLDER, find_checkpoint, load_checkpoint

SliceRange = tuple[int | None, int | None]
KEY = "reconstruction"


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
class SliceImages:
    """A slice's images, real (h, w), upright, in the target's unit; larger ones are cropped."""

    volume: str
    slice_index: int
    target: Tensor
    r_x: Tensor  # phase encoding along x, the last axis
    r_y: Tensor | None  # along y, of r_x's shape
    why_no_r_y: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Reconstructions under one name."""

    name: str
    origin: str  # a path, or how they were made
    slices: Iterable[SliceImages]


def reference_volumes(files: Sequence[Volume]) -> list[ReferenceVolume]:
    """The references of files with targets.

    Raises:
        VolumeError: files without target (all are named), or one whose target is not finite.
    """
    without = [f"{file.path}: has no target image" for file in files if file.target_key is None]
    if without:
        raise VolumeError.of_all(without)
    references = []
    for file in files:
        assert file.data_range is not None  # what has a target has its maximum
        references.append(
            ReferenceVolume(
                name=file.name,
                acquisition=file.acquisition,
                scanner=file.scanner,
                group=file.group,
                data_range=file.data_range,
                scale=volume_scale(_read_target(file)),
            )
        )
    return references


def path_set(
    name: str,
    path: Path,
    files: Sequence[Volume],
    *,
    slice_range: SliceRange,
    device: torch.device,
) -> ImageSet:
    """The set that a path names: a run's folder, a checkpoint, or a folder of reconstructions.

    Everything that can be wrong without looking at pixels is found here, before hours of work.

    Args:
        name: of the set.
        path: see above.
        files: with targets; each with at least one slice in the range.
        slice_range: slices [first, stop) of each volume, None: from its first, to its last.
        device: to reconstruct on.

    Raises:
        ConfigError: there is nothing, or no reconstructions, or the masks do not suit.
        CheckpointError: the checkpoint cannot be used.
        VolumeError: reconstructions are missing or do not fit the volumes; all are named.
    """
    path = path.expanduser()
    if not path.exists():
        raise ConfigError(f"set {name!r}: {path} does not exist")
    if path.is_file() or (path / FOLDER).is_dir():
        path = find_checkpoint(path)
        slices = _checkpoint_slices(path, files, slice_range, device)
        return ImageSet(name=name, origin=str(path), slices=slices)
    folder_x, folder_y = path, None
    if (path / "x").is_dir():
        folder_x, folder_y = path / "x", path / "y" if (path / "y").is_dir() else None
    if not any(folder_x.glob("*" + SUFFIX)):
        raise ConfigError(
            f"set {name!r}: {path} is neither a run's folder ({FOLDER}/*.pt) nor one of "
            f"reconstructions (x/*{SUFFIX} and y/*{SUFFIX}, or *{SUFFIX})"
        )
    _check_files(name, files, folder_x, folder_y)
    slices = _file_slices(files, slice_range, folder_x, folder_y)
    return ImageSet(name=name, origin=str(path), slices=slices)


def _checkpoint_slices(
    path: Path, files: Sequence[Volume], slice_range: SliceRange, device: torch.device
) -> Iterator[SliceImages]:
    """Reconstructions along both axes, undersampled as in the checkpoint's own validation."""
    checkpoint = load_checkpoint(path)
    trained = from_plain(checkpoint.settings, path)
    predictor = build_predictor(trained, device, checkpoint, path)
    masks = trained.mask_sampler()
    for file in files:
        for width in {file.width, file.height}:
            try:
                masks.check(width)
            except ValueError as error:
                raise ConfigError(f"{path} on {file.name}: {error}") from error

    def dataset(file: Volume) -> SliceDataset:
        return SliceDataset(
            [file],
            masks,
            seed=trained.seed,
            offsets_from_data=trained.offsets_from_data,
            slice_range=slice_range,
        )

    datasets = [dataset(file) for file in files]

    def slices() -> Iterator[SliceImages]:
        for slices_of_file in datasets:
            measured = slices_of_file.volumes[0].measured is not None
            for index in range(len(slices_of_file)):
                (both,) = reconstruct_both(predictor, slices_of_file, [index], device)
                yield SliceImages(
                    volume=both.name,
                    slice_index=both.slice_index,
                    target=both.target,
                    r_x=both.along_x,
                    r_y=None if measured else both.along_y,
                    why_no_r_y="undersampled by the scanner along x" if measured else "",
                )
            slices_of_file.close()

    return slices()


def _file_slices(
    files: Sequence[Volume], slice_range: SliceRange, folder_x: Path, folder_y: Path | None
) -> Iterator[SliceImages]:
    """Reconstructions of another software, a slice at a time."""
    why_no_r_y = "" if folder_y else "no folder y: phase encoding along x alone"
    for file in files:
        target = _read_target(file)
        for index in range(file.slices)[slice(*slice_range)]:
            yield SliceImages(
                volume=file.name,
                slice_index=index,
                target=torch.from_numpy(target[index]),
                r_x=slice_of_file(folder_x / file.name, index),
                r_y=slice_of_file(folder_y / file.name, index) if folder_y else None,
                why_no_r_y=why_no_r_y,
            )


def _check_files(name: str, files: Sequence[Volume], folder_x: Path, folder_y: Path | None) -> None:
    """Make sure that there is a file for each volume, and that shapes fit.

    Raises:
        VolumeError: not so; all are named.
    """
    problems = []
    for file in files:
        shapes = {}
        for path in [folder / file.name for folder in (folder_x, folder_y) if folder]:
            try:
                shapes[path] = shape_of_file(path)
                if shapes[path][0] != file.slices:
                    problems.append(
                        f"{path}: {KEY} is {shapes[path]}, but the target of {file.name} is "
                        f"{(file.slices, *(file.target_size or ()))}: the numbers of slices differ"
                    )
            except VolumeError as error:
                problems.append(str(error))
        if len({shape[1:] for shape in shapes.values()}) > 1:
            both = ", ".join(f"{path}: {shape}" for path, shape in shapes.items())
            problems.append(f"{both}: shapes differ (both must be upright)")
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise VolumeError(f"set {name!r} does not fit the volumes:\n{lines}")


def shape_of_file(path: Path) -> tuple[int, ...]:
    """Shape of a file's reconstruction.

    Raises:
        VolumeError: no such file, or not in the format.
    """
    if not path.exists():
        raise VolumeError(f"{path}: is missing")
    try:
        with open_file(path) as file:
            found = own_dataset(file, KEY)
            if found.ndim != 3 or found.dtype.kind not in "fiu":
                raise ValueError(
                    f"{KEY} is {found.dtype} {found.shape}; expected real [slice, h, w]"
                )
            check_stored(found)
            return tuple(map(int, found.shape))
    except READ_ERRORS as error:
        raise VolumeError(f"{path}: {error}") from error


def slice_of_file(path: Path, index: int) -> Tensor:
    """One reconstruction, float32 (h, w).

    Raises:
        VolumeError: it cannot be read, or is not finite.
    """
    try:
        with open_file(path) as file:
            image = own_dataset(file, KEY)[index].astype(np.float32)
    except READ_ERRORS as error:
        raise VolumeError(f"{path}: slice {index}: {error}") from error
    if not np.isfinite(image).all():
        raise VolumeError(f"{path}: {KEY} of slice {index} has NaN or Inf")
    return torch.from_numpy(image)


def _read_target(file: Volume) -> NDArray[np.float32]:
    """All targets of a volume, float32 [slice, h, w].

    Raises:
        VolumeError: they cannot be read, or are not finite.
    """
    try:
        with open_file(file.path) as content:
            stored = own_dataset(content, str(file.target_key))
            target: NDArray[np.float32] = stored[()].astype(np.float32)
    except READ_ERRORS as error:
        raise VolumeError(f"{file.path}: target: {error}") from error
    if not np.isfinite(target).all():
        raise VolumeError(f"{file.path}: target has NaN or Inf")
    return target
