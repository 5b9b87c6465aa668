"""From a checkpoint and a folder of volumes to a folder of reconstructions.

`reconstruct` plans (what is there, what is missing, what is in the way), then each process takes
its volumes one after the other, and writes each as a whole: what is interrupted goes on.
"""

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from tqdm import tqdm

from banding_removal import __version__
from banding_removal.config.settings import REPOSITORY, Settings, from_plain
from banding_removal.data.dataset import SliceDataset
from banding_removal.data.index import read_volumes
from banding_removal.data.volume import SUFFIX, Volume, VolumeError
from banding_removal.errors import ConfigError
from banding_removal.processes.signals import Stopped
from banding_removal.processes.team import Team
from banding_removal.reconstruction.files import (
    PREVIEWS,
    Origin,
    differences,
    remove_leftovers,
    write_preview,
    write_reconstruction,
)
from banding_removal.reconstruction.volume import SliceImage, images_of_volume, output_size
from banding_removal.runs.build import build_predictor, choose_device
from banding_removal.runs.checkpoint import FOLDER, Checkpoint, find_checkpoint, load_checkpoint
from banding_removal.runs.folder import RunLock

log = logging.getLogger(__name__)

NAMED = 10  # files in one message


@dataclass(frozen=True, kw_only=True)
class ReconstructSettings:
    """What to reconstruct, with what, and where to."""

    checkpoint: Path = REPOSITORY / "logs" / "run"  # a run's folder, or one of its checkpoints
    volumes: Path = Path("/path/to/fastmri/knee/multicoil_test")  # a folder of *.h5, or one file
    output: Path | None = None  # folder; null: reconstructions/epochNNN/<volumes> in the run's
    # Phase encoding along x, as it was acquired, or along y, transposed; both: in folders x and y.
    orientation: Literal["x", "y", "both"] = "x"
    skip_bad_volumes: bool = False  # begin although some files are unusable
    previews: bool = True  # a page of pictures for each volume
    window: float = 0.25  # white of the low-signal pictures, of the volume's largest value
    device: str = "auto"
    nproc: int | None = None  # processes on this machine; null: one per visible GPU, or one
    timeout_minutes: float = 1440.0  # longest wait at the end for the process with the most to do

    def __post_init__(self) -> None:
        for name in ("window", "nproc", "timeout_minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be positive and finite, got {value}")


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
    """What there is to do; the first process makes it for all."""

    folder: Path
    jobs: list[Job]
    done: int  # files that are there already, of the same checkpoint and volumes
    unusable: list[str]  # volumes, a line each


@dataclass(kw_only=True)
class Part:
    """What one process did."""

    written: int = 0
    slices: int = 0
    failures: list[str] = field(default_factory=list)  # a line each
    signal_name: str | None = None  # it was asked to stop


@dataclass(frozen=True, kw_only=True)
class Report:
    """What all processes did."""

    folder: Path
    written: int
    slices: int
    seconds: float
    failures: list[str]  # volumes without a reconstruction, a line each

    def __str__(self) -> str:
        pace = f", {self.seconds / self.slices:.2f} s each" if self.slices else ""
        return (
            f"{self.written} volumes ({self.slices} slices{pace}) reconstructed, "
            f"{len(self.failures)} failed: look at {self.folder}"
        )


class StoppedAmongVolumes(Stopped):
    """Asked to stop; each file that is there is whole."""

    def __init__(self, signal_name: str, written: int, left: int) -> None:
        super().__init__(signal_name, written)
        self.left = left

    def __str__(self) -> str:
        return f"stopped by {self.signal_name}: {self.step} volumes are written, {self.left} left"


def reconstruct(settings: ReconstructSettings, team: Team | None = None) -> Report | None:
    """Reconstruct the volumes that `settings` name; the report is the first process's.

    A volume that fails on the way costs no other one: the report lists it.

    Args:
        settings: what, with what and where to.
        team: the processes that divide the volumes; by default this one alone.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
        FileNotFoundError: no volumes where `volumes` says.
        VolumeError: unusable files, all named; unless they are to be skipped.
        ConfigError: volumes that were undersampled by the scanner are to be transposed.
        FileExistsError: files are in the way which are not the same reconstructions.
        OSError: a file cannot be written, for instance on a full disk.
        StoppedAmongVolumes: asked to by a signal.
    """
    team = team or Team()
    began = time.monotonic()
    with team.naming_causes(), RunLock() as lock:
        device = choose_device(settings.device, team)
        path = team.from_first(lambda: find_checkpoint(settings.checkpoint))
        checkpoint = load_checkpoint(path)
        trained = from_plain(checkpoint.settings, path)
        predictor = build_predictor(trained, device, checkpoint, path)
        plan = team.from_first(lambda: _plan(settings, path, checkpoint, trained, lock))
        if team.is_first and plan.done:
            tqdm.write(
                f"{plan.done} of {plan.done + len(plan.jobs)} reconstructions are there already, "
                f"of the same checkpoint and volumes: {plan.folder}"
            )
        jobs = shares_by_size(plan.jobs, team.size)[team.rank]
        part = _work(settings, jobs, trained, predictor, device, team)
        parts = team.gather(part)
    failures = [line for part in parts for line in part.failures]
    written = sum(part.written for part in parts)
    left = len(plan.jobs) - written - len(failures)
    stops = [part.signal_name for part in parts if part.signal_name is not None]
    if stops and left:
        raise StoppedAmongVolumes(stops[0], plan.done + written, left)
    if not team.is_first:
        return None
    return Report(
        folder=plan.folder,
        written=written,
        slices=sum(part.slices for part in parts),
        seconds=time.monotonic() - began,
        failures=[*plan.unusable, *failures],
    )


# --- what there is to do ---


def _plan(
    settings: ReconstructSettings,
    path: Path,
    checkpoint: Checkpoint,
    trained: Settings,
    lock: RunLock,
) -> Plan:
    """Check everything that can be checked before the first slice, and lock the output folder."""
    orientations = ("x", "y") if settings.orientation == "both" else (settings.orientation,)
    volumes, unusable = _usable(settings.volumes, trained, orientations)
    if unusable:
        error = VolumeError.of_all(unusable)
        if not settings.skip_bad_volumes or not volumes:
            raise error
        log.warning("left out: %s", error)
    measured = [volume.path for volume in volumes if volume.measured is not None]
    if measured and "y" in orientations:
        raise ConfigError(
            f"{len(measured)} volume(s) were undersampled by the scanner and cannot be transposed: "
            + ", ".join(measured)
            + "\norientation=x reconstructs them as they were acquired"
        )

    folder = settings.output or _default_output(path, settings.volumes)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    jobs = [
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

    folder.mkdir(parents=True, exist_ok=True)
    lock.take(folder)
    for output in {job.path.parent for job in jobs}:
        remove_leftovers(output)
    left = [job for job in jobs if not job.path.exists()]
    there = [
        (job.path, job.origin, (job.volume.slices, *output_size(job.volume)))
        for job in jobs
        if job not in left
    ]
    in_the_way = [
        f"  {path} {why}"
        for (path, _, _), why in zip(there, differences(there), strict=True)
        if why is not None
    ]
    if in_the_way:
        raise FileExistsError(
            f"{len(in_the_way)} file(s) would be overwritten: choose another output=..., or remove "
            "them\n"
            + "\n".join(in_the_way[:NAMED])
            + (f"\n  and {len(in_the_way) - NAMED} more" if len(in_the_way) > NAMED else "")
        )
    return Plan(folder=folder, jobs=left, done=len(jobs) - len(left), unusable=unusable)


def _usable(
    path: Path, trained: Settings, orientations: Sequence[str]
) -> tuple[list[Volume], list[str]]:
    """The volumes that can be reconstructed, and a line for each of the others.

    Raises:
        FileNotFoundError: there is none at all.
    """
    paths = [path] if path.is_file() else sorted(path.glob("*" + SUFFIX))
    if not paths:
        state = f"holds no *{SUFFIX} file" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"no volumes: {path} {state}; set volumes=...")
    volumes, problems = [], []
    bar = tqdm(total=len(paths), desc="look at volumes", unit="file", leave=False, delay=1)
    for volume in read_volumes(paths):
        bar.update()
        try:
            if isinstance(volume, VolumeError):
                raise volume
            _dataset(volume, trained)
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


def _dataset(volume: Volume, trained: Settings) -> SliceDataset:
    """The slices of one volume, undersampled as in the validation of the training."""
    return SliceDataset(
        [volume],
        trained.mask_sampler(),
        seed=trained.seed,
        offsets_from_data=trained.offsets_from_data,
        require_target=False,
    )


def shares_by_size(jobs: Sequence[Job], ranks: int) -> list[list[Job]]:
    """Jobs for each of `ranks` processes, with about equally much k-space to go through.

    The largest go first, each to whoever has the least.
    """

    def size(job: Job) -> int:
        volume = job.volume
        return volume.slices * (volume.coils or 1) * volume.height * volume.width

    shares: list[list[Job]] = [[] for _ in range(ranks)]
    for job in sorted(jobs, key=size, reverse=True):
        min(shares, key=lambda share: sum(map(size, share))).append(job)
    return shares


# --- doing it ---


def _work(
    settings: ReconstructSettings,
    jobs: Sequence[Job],
    trained: Settings,
    predictor: nn.Module,
    device: torch.device,
    team: Team,
) -> Part:
    """One process's jobs, until they are done or somebody asks to stop."""
    part = Part()
    total = sum(job.volume.slices for job in jobs)
    with tqdm(total=total, unit="slice", mininterval=1, disable=not team.is_first) as bar:
        for job in jobs:
            bar.set_description(job.volume.name)
            before = bar.n
            try:
                slices = _slices(job, trained, predictor, device, team, bar)
            except (VolumeError, FloatingPointError, torch.OutOfMemoryError) as error:
                words = str(error).splitlines()[0]
                known = words if job.volume.path in words else f"{job.volume.path}: {words}"
                log.warning("left out: %s", known)
                part.failures.append(known)
                bar.update(before + job.volume.slices - bar.n)
                continue
            if slices is None:
                part.signal_name = team.stop.signal_name
                break
            if settings.previews:
                # Before the volume's file, whose presence says that all is done.
                write_preview(
                    job.path.parent / PREVIEWS / f"{job.path.stem}.png",
                    slices,
                    header=_header(job, settings.window),
                    window=settings.window,
                )
            write_reconstruction(job.path, slices, job.origin)
            part.written += 1
            part.slices += len(slices)
    return part


def _slices(
    job: Job,
    trained: Settings,
    predictor: nn.Module,
    device: torch.device,
    team: Team,
    bar: tqdm,
) -> list[SliceImage] | None:
    """A volume's images; None if somebody asks to stop before the last one."""
    dataset = _dataset(job.volume, trained)
    slices = []
    for item in images_of_volume(predictor, dataset, 0, device=device, rotated=job.rotated):
        slices.append(item)
        bar.update()
        if team.stop.signal_name is not None and len(slices) < job.volume.slices:
            return None
    return slices


def _header(job: Job, window: float) -> list[str]:
    origin = job.origin
    return [
        f"{job.volume.name} ({job.volume.group}), phase encoding along {origin.orientation}: "
        f"banding would be streaks along {origin.orientation}.",
        f"{origin.checkpoint}, epoch {origin.epoch}, step {origin.step}. Low signal: white at "
        f"{window:.0%} of the volume's maximum.",
    ]
