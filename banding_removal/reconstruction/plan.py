"""What a reconstruction of a folder has to do: which files are to be written, which are there."""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from banding_removal import __version__
from banding_removal.config.settings import Settings
from banding_removal.data.dataset import SliceDataset
from banding_removal.data.index import read_volumes
from banding_removal.data.notes import warn_of_notes
from banding_removal.data.sampler import balanced_shares
from banding_removal.data.volume import SUFFIX, Volume, VolumeError, volume_paths
from banding_removal.errors import ConfigError
from banding_removal.reconstruction.files import Origin, differences, remove_leftovers
from banding_removal.reconstruction.settings import ReconstructSettings
from banding_removal.reconstruction.volume import output_size
from banding_removal.runs.checkpoint import FOLDER, Checkpoint
from banding_removal.runs.lock import RunLock

log = logging.getLogger(__name__)

MAX_NAMED = 10  # files in one message


@dataclass(frozen=True, kw_only=True)
class Job:
    """A volume to reconstruct, and the file to write."""

    volume: Volume
    path: Path
    origin: Origin

    @property
    def rotated(self) -> bool:
        """Whether k-space is transposed before it is undersampled."""
        return self.origin.orientation == "y"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The work of all processes."""

    folder: Path
    jobs: list[Job]
    done: int  # files that exist already, of the same checkpoint and volumes
    unusable: list[str]  # volumes, a line each


def make_plan(
    settings: ReconstructSettings,
    path: Path,
    checkpoint: Checkpoint,
    trained: Settings,
    lock: RunLock,
) -> Plan:
    """Check everything that can be checked before the first slice, and lock the output folder.

    Args:
        settings: what to reconstruct.
        path: the checkpoint file.
        checkpoint: its content.
        trained: the settings in it.
        lock: takes the output folder.

    Raises:
        FileNotFoundError: there are no volumes.
        VolumeError: unusable files, all named, unless they are to be skipped.
        ConfigError: a volume that the scanner undersampled cannot be transposed.
        FileExistsError: other files would be overwritten.
    """
    orientations = ("x", "y") if settings.orientation == "both" else (settings.orientation,)
    volumes, unusable = _usable(settings.volumes, trained, orientations)
    if unusable:
        if not settings.skip_bad_volumes or not volumes:
            raise VolumeError.of_all(unusable, others=len(volumes))
        log.warning("left out: %s", VolumeError.of_all(unusable))
    warn_of_notes(volumes, str(settings.volumes))
    shapes = Counter((v.slices, v.coils or 1, v.height, v.width) for v in volumes).most_common()
    tqdm.write(
        f"{len(volumes)} volumes, slices x coils x readout x phase encode: "
        + ", ".join(f"{' x '.join(map(str, shape))} ({n})" for shape, n in shapes[:MAX_NAMED])
    )
    measured = [volume.path for volume in volumes if volume.measured is not None]
    if measured and "y" in orientations:
        raise ConfigError(
            f"{len(measured)} volume(s) were undersampled by the scanner and cannot be transposed: "
            + ", ".join(measured)
            + "\norientation=x reconstructs them as they were acquired"
        )
    folder = settings.output or _default_output(path, settings.volumes)
    jobs = _jobs(volumes, orientations, folder, path, checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    lock.take(folder)
    for output in {job.path.parent for job in jobs}:
        remove_leftovers(output)
    missing = [job for job in jobs if not job.path.exists()]
    _check_existing([job for job in jobs if job not in missing])
    return Plan(folder=folder, jobs=missing, done=len(jobs) - len(missing), unusable=unusable)


def dataset_of(volume: Volume, trained: Settings) -> SliceDataset:
    """The slices of one volume, undersampled as in the validation of the training."""
    return SliceDataset(
        [volume],
        trained.mask_sampler(),
        seed=trained.seed,
        offsets_from_data=trained.offsets_from_data,
        require_target=False,
    )


def shares_by_size(jobs: Sequence[Job], ranks: int) -> list[list[Job]]:
    """Jobs for each of `ranks` processes, with about the same amount of k-space each."""

    def size(job: Job) -> int:
        volume = job.volume
        return volume.slices * (volume.coils or 1) * volume.height * volume.width

    return balanced_shares(jobs, size, ranks)


def _usable(
    path: Path, trained: Settings, orientations: Sequence[str]
) -> tuple[list[Volume], list[str]]:
    """The volumes that can be reconstructed, and a line for each of the others.

    Raises:
        FileNotFoundError: there are no files.
    """
    paths = [path] if path.is_file() else volume_paths(path)
    if not paths:
        state = f"holds no *{SUFFIX} file" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"no volumes: {path} {state}; set volumes=...")
    volumes, problems = [], []
    bar = tqdm(total=len(paths), desc="checking volumes", unit="file", leave=False, delay=1)
    for volume in read_volumes(paths):
        bar.update()
        try:
            if isinstance(volume, VolumeError):
                raise volume
            dataset_of(volume, trained)
            _check_masks(volume, trained, orientations)
        except VolumeError as error:
            problems.append(str(error).splitlines()[-1].strip())
        else:
            volumes.append(volume)
    return volumes, problems


def _check_masks(volume: Volume, trained: Settings, orientations: Sequence[str]) -> None:
    if volume.measured is not None:
        return
    widths = {"x": volume.width, "y": volume.height}
    try:
        for orientation in orientations:
            trained.mask_sampler().check(widths[orientation])
    except ValueError as error:
        raise VolumeError(f"{volume.path}: {error}") from error


def _default_output(checkpoint: Path, volumes: Path) -> Path:
    run = checkpoint.parent.parent if checkpoint.parent.name == FOLDER else checkpoint.parent
    name = volumes.stem if volumes.is_file() else volumes.resolve().name
    return run / "reconstructions" / checkpoint.stem / name


def _jobs(
    volumes: Sequence[Volume],
    orientations: Sequence[str],
    folder: Path,
    path: Path,
    checkpoint: Checkpoint,
) -> list[Job]:
    """A job for each volume and orientation; two orientations go into folders of their own."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return [
        Job(
            volume=volume,
            path=(folder if len(orientations) == 1 else folder / orientation) / volume.name,
            origin=Origin(
                checkpoint=str(path.resolve()),
                checkpoint_sha256=digest,
                epoch=checkpoint.epoch,
                step=checkpoint.step,
                source=volume.path,
                source_bytes=volume.bytes,
                orientation=orientation,
                version=__version__,
            ),
        )
        for orientation in orientations
        for volume in volumes
    ]


def _check_existing(jobs: Sequence[Job]) -> None:
    """Make sure that the files of these jobs, which exist, are what the jobs would write.

    Raises:
        FileExistsError: some are not; the first few are named.
    """
    files = [(job.path, job.origin, (job.volume.slices, *output_size(job.volume))) for job in jobs]
    others = [
        f"  {job.path} {why}"
        for job, why in zip(jobs, differences(files), strict=True)
        if why is not None
    ]
    if others:
        raise FileExistsError(
            f"{len(others)} file(s) would be overwritten: choose another output=..., or remove "
            "them\n"
            + "\n".join(others[:MAX_NAMED])
            + (f"\n  and {len(others) - MAX_NAMED} more" if len(others) > MAX_NAMED else "")
        )
