"""From a checkpoint and a folder of volumes to a folder of reconstructions.

The first process makes a plan (`plan`). Then each process reconstructs its volumes one after the
other and writes each file whole, so that the same command continues after an interruption.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from banding_removal.config.settings import Settings
from banding_removal.data.volume import VolumeError
from banding_removal.processes.signals import Doing, Stopped
from banding_removal.processes.team import Team
from banding_removal.processes.threads import set_threads
from banding_removal.reconstruction.files import PREVIEWS, write_reconstruction
from banding_removal.reconstruction.plan import Job, dataset_of, make_plan, shares_by_size
from banding_removal.reconstruction.preview import write_preview
from banding_removal.reconstruction.settings import ReconstructSettings
from banding_removal.reconstruction.volume import SliceImage, images_of_volume
from banding_removal.runs.build import choose_device
from banding_removal.runs.checkpoint import find_checkpoint
from banding_removal.runs.lock import RunLock
from banding_removal.runs.trained import load_trained

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class _Share:
    """What one process did."""

    written: int = 0
    slices: int = 0
    failures: list[str] = field(default_factory=list)  # a line each
    signal_name: str | None = None  # of the signal that asked it to stop


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
            f"{len(self.failures)} failed; results are in {self.folder}"
        )


class StoppedAmongVolumes(Stopped):
    """A signal asked to stop; each file that exists is whole."""

    def __init__(self, signal_name: str, written: int, left: int) -> None:
        super().__init__(signal_name, written)
        self.left = left

    def __str__(self) -> str:
        return f"stopped by {self.signal_name}: {self.step} volumes are written, {self.left} left"


def reconstruct(settings: ReconstructSettings, team: Team | None = None) -> Report | None:
    """Reconstruct the volumes that `settings` name; only the first process returns a report.

    A volume that fails does not affect the others; the report lists it.

    Args:
        settings: what to reconstruct, with which checkpoint, and where to write it.
        team: the processes that divide the volumes; by default this one alone.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
        FileNotFoundError: there are no volumes.
        VolumeError: unusable files, all named, unless they are to be skipped.
        ConfigError: a volume that the scanner undersampled cannot be transposed, or the predictor
            is other code that the settings do not name.
        FileExistsError: files would be overwritten that are not the same reconstructions.
        OSError: a file cannot be written, for instance on a full disk.
        StoppedAmongVolumes: a signal asked to stop.
    """
    team = team or Team()
    start = time.monotonic()
    with team.naming_causes(), RunLock() as lock:
        device = choose_device(settings.device, team)
        path = team.from_first(lambda: find_checkpoint(settings.checkpoint))
        loaded = load_trained(path, device, settings.predictors)
        trained, predictor = loaded.settings, loaded.predictor
        plan = team.from_first(lambda: make_plan(settings, path, loaded.checkpoint, trained, lock))
        if team.is_first and plan.done:
            tqdm.write(
                f"{plan.done} of {plan.done + len(plan.jobs)} reconstructions exist already, "
                f"of the same checkpoint and volumes: {plan.folder}"
            )
        jobs = shares_by_size(plan.jobs, team.size)[team.rank]
        set_threads((job.volume for job in plan.jobs), processes=team.local_size)
        with team.stop.while_doing(Doing.WORKING):
            share = _work(settings, jobs, trained, predictor, device, team)
            shares = team.gather(share)
    failures = [line for share in shares for line in share.failures]
    written = sum(share.written for share in shares)
    left = len(plan.jobs) - written - len(failures)
    signals = [share.signal_name for share in shares if share.signal_name is not None]
    if signals and left:
        raise StoppedAmongVolumes(signals[0], plan.done + written, left)
    if not team.is_first:
        return None
    return Report(
        folder=plan.folder,
        written=written,
        slices=sum(share.slices for share in shares),
        seconds=time.monotonic() - start,
        failures=[*plan.unusable, *failures],
    )


def _work(
    settings: ReconstructSettings,
    jobs: Sequence[Job],
    trained: Settings,
    predictor: nn.Module,
    device: torch.device,
    team: Team,
) -> _Share:
    """Do the jobs of one process, until they are done or a signal asks to stop."""
    share = _Share()
    total = sum(job.volume.slices for job in jobs)
    with tqdm(total=total, unit="slice", mininterval=1, disable=not team.is_first) as bar:
        for job in jobs:
            bar.set_description(job.volume.name)
            before = bar.n
            try:
                slices = _slices(job, trained, predictor, device, team, bar)
            except (VolumeError, FloatingPointError, torch.OutOfMemoryError) as error:
                message = str(error).splitlines()[0]
                if job.volume.path not in message:
                    message = f"{job.volume.path}: {message}"
                log.warning("left out: %s", message)
                share.failures.append(message)
                bar.update(before + job.volume.slices - bar.n)
                continue
            if slices is None:
                share.signal_name = team.stop.signal_name
                break
            if settings.previews:
                # Before the reconstruction, whose presence means that the volume is done.
                preview = job.path.parent / PREVIEWS / f"{job.path.stem}.png"
                header = _preview_header(job, settings.window)
                write_preview(preview, slices, header=header, window=settings.window)
            write_reconstruction(job.path, slices, job.origin)
            share.written += 1
            share.slices += len(slices)
    return share


def _slices(
    job: Job,
    trained: Settings,
    predictor: nn.Module,
    device: torch.device,
    team: Team,
    bar: tqdm,
) -> list[SliceImage] | None:
    """The images of a volume; None if a signal asks to stop before the last one."""
    dataset = dataset_of(job.volume, trained)
    slices = []
    for item in images_of_volume(predictor, dataset, 0, device=device, rotated=job.rotated):
        slices.append(item)
        bar.update()
        if team.stop.signal_name is not None and len(slices) < job.volume.slices:
            return None
    return slices


def _preview_header(job: Job, window: float) -> list[str]:
    origin = job.origin
    return [
        f"{job.volume.name} ({job.volume.group}), phase encoding along {origin.orientation}: "
        f"banding would be streaks along {origin.orientation}.",
        f"{origin.checkpoint}, epoch {origin.epoch}, step {origin.step}. Low signal: white at "
        f"{window:.0%} of the volume's maximum.",
    ]
