"""From settings to parts: data sets, loaders, networks, device."""

import logging
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from banding_removal.config.settings import ConfigError, Settings
from banding_removal.data.dataset import Batch, Draw, SliceDataset, collate
from banding_removal.data.index import Volume, VolumeError, index_folder
from banding_removal.data.sampler import EpochSampler
from banding_removal.losses.reconstruction import WINDOW
from banding_removal.model.classifiers import Ensemble, build_adversary
from banding_removal.model.predictor import Predictor
from banding_removal.processes.signals import end_workers_at_exit, leave_stopping_to
from banding_removal.processes.team import Team
from banding_removal.runs.checkpoint import Checkpoint, load_weights

log = logging.getLogger(__name__)

WIDE = 32  # channels


def make_datasets(settings: Settings) -> tuple[SliceDataset, SliceDataset]:
    """Training and validation slices, indexed, checked and filtered.

    Raises:
        FileNotFoundError: a folder is missing or empty; the message says what to do.
        VolumeError: unusable files in either folder, all of them.
        ConfigError: the filters leave nothing.
    """
    folders = [settings.data_path / f"{settings.challenge}_{part}" for part in ("train", "val")]
    cache = settings.logs / "index"
    try:
        train_volumes, val_volumes = (
            index_folder(folder, cache_folder=cache, skip_bad=settings.skip_bad_volumes)
            for folder in folders
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no data: {error}.\n"
            f"Set DATA_PATH at the top of the script (or data_path=... on the command line) to the "
            f"folder that holds {folders[0].name}/*.h5 and {folders[1].name}/*.h5 of fastMRI,\n"
            f"or make the phantom data set with: ipython scripts/make_phantom.py"
        ) from error
    volumes = [
        _usable(part, skip_bad=settings.skip_bad_volumes) for part in (train_volumes, val_volumes)
    ]
    try:
        return _datasets(settings, *volumes)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _usable(volumes: list[Volume], *, skip_bad: bool) -> list[Volume]:
    """The volumes that can be trained on: with a target, and large enough for the loss.

    Raises:
        VolumeError: others are there, and not to be skipped with a warning.
    """
    problems = {
        volume.path: "has no target image"
        if volume.target_size is None
        else f"has images of less than {WINDOW} x {WINDOW} pixels"
        for volume in volumes
        if volume.target_size is None
        or min(volume.height, volume.width, *volume.target_size) < WINDOW
    }
    if problems:
        error = VolumeError.of_all([f"{path}: {why}" for path, why in problems.items()])
        if not skip_bad or len(problems) == len(volumes):
            raise error
        log.warning("left out: %s", error)
    return [volume for volume in volumes if volume.path not in problems]


def _datasets(
    settings: Settings, train_volumes: list[Volume], val_volumes: list[Volume]
) -> tuple[SliceDataset, SliceDataset]:
    masks = settings.mask_sampler()
    train_volumes = settings.train_filter.apply(train_volumes, settings.seed)
    val_volumes = settings.val_filter.apply(val_volumes, settings.seed)
    if settings.paired:
        train_volumes = _transposable(train_volumes)
    widths = {volume.width for volume in (*train_volumes, *val_volumes)}
    if settings.rotate_probability > 0 or settings.paired:
        widths |= {volume.height for volume in train_volumes}
    for width in sorted(widths):
        masks.check(width)
    return (
        SliceDataset(
            train_volumes,
            masks,
            seed=settings.seed,
            rotate_probability=settings.rotate_probability,
            redraw_masks=settings.redraw_masks,
            offsets_from_data=settings.offsets_from_data,
            slice_range=settings.train_slices,
        ),
        SliceDataset(
            val_volumes,
            masks,
            seed=settings.seed,
            offsets_from_data=settings.offsets_from_data,
            slice_range=settings.val_slices,
        ),
    )


def _transposable(volumes: list[Volume]) -> list[Volume]:
    """The volumes that were not undersampled by the scanner.

    Raises:
        ConfigError: there are none.
    """
    kept = [volume for volume in volumes if volume.measured is None]
    if not kept:
        raise ConfigError(
            "paired needs training volumes that were fully sampled: all of these were "
            "undersampled by the scanner and cannot be transposed"
        )
    for volume in volumes:
        if volume.measured is not None:
            log.warning("left out: %s was undersampled by the scanner: no pair", volume.path)
    return kept


def build_predictor(
    settings: Settings,
    device: torch.device,
    start: Checkpoint | None = None,
    start_path: Path | None = None,
) -> Predictor:
    """The predictor that the settings describe, with the weights of `start` if given.

    Raises:
        CheckpointError: the weights do not fit; the differing keys are listed.
    """
    predictor = Predictor(
        cascades=settings.cascades,
        chans=settings.chans,
        pools=settings.pools,
        sens_chans=settings.sens_chans,
        sens_identity=settings.sens_identity,
        dropout=settings.dropout,
    )
    if start is not None and start_path is not None:
        load_weights(predictor, start.predictor, start_path)
    return predictor.to(device)


def build_adversary_of(settings: Settings, device: torch.device) -> Ensemble | None:
    """The adversary that the settings describe; None in stage 1."""
    if settings.adversary is None:
        return None
    adversary = build_adversary(
        settings.adversary, members=settings.adversary_members, chans=settings.adversary_chans
    )
    # On CPUs, channels last make narrow adversaries several times faster, and the penalty's second
    # derivatives of wide ones a fifth slower.
    chans = next(weight.shape[0] for weight in adversary.parameters() if weight.ndim == 4)
    if device.type == "cpu" and chans < WIDE:
        adversary.to(memory_format=torch.channels_last)
    return adversary.to(device)


def make_loader(
    dataset: SliceDataset,
    sampler: EpochSampler | list[list[Draw]],
    workers: int,
    device: torch.device,
) -> DataLoader[Batch]:
    """A loader that yields `Batch`es in the sampler's order."""
    if workers > 0:
        end_workers_at_exit()
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # collate turns its Examples into Batches
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        # Batches that each worker may be ahead, wherever they are, shared or pinned: 4 workers hold
        # 8 slices, 60 MB of the paper's size.
        prefetch_factor=2 if workers > 0 else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=partial(leave_stopping_to, os.getpid()),
        # A process that was itself spawned would spawn these, too, which takes seconds each.
        multiprocessing_context="fork" if workers > 0 else None,
        # Its own generator: the loader draws seeds, and must not move the one that dropout uses.
        generator=torch.Generator(),
    )


def batches_of(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """The loader's batches.

    Raises:
        RuntimeError: a loading process was killed. PyTorch says so by itself, unless the process
            was just handing over a batch.
    """
    batches = iter(loader)
    try:
        yield from batches
    except (ConnectionError, EOFError) as error:
        for worker in getattr(batches, "_workers", ()):
            worker.join(1)
            if worker.exitcode is not None and worker.exitcode < 0:
                raise RuntimeError(
                    f"DataLoader worker (pid {worker.pid}) is killed by signal {-worker.exitcode}"
                ) from error
        raise


def choose_device(name: str, team: Team | None = None) -> torch.device:
    """The device of that name; `auto` is the GPU where there is one.

    Of several processes on a machine, each has the GPU of its local rank.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r}: {str(error).splitlines()[0]}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name!r}: this machine has {torch.cuda.device_count()} GPUs")
    if device.type == "cuda" and team is not None and team.size > 1:
        return torch.device("cuda", team.local_rank)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # whose random state checkpoints hold
    return device
