"""What settings describe, built: data sets, networks, device.

These functions are where whole settings end: what they return takes explicit arguments.
"""

import logging
import re
from pathlib import Path

import torch
from torch import nn

from banding_removal.config.settings import Settings
from banding_removal.data.dataset import NO_CENTRE, SliceDataset
from banding_removal.data.index import index_folder
from banding_removal.data.volume import Volume, VolumeError
from banding_removal.errors import ConfigError
from banding_removal.metrics.image_quality import WINDOW
from banding_removal.model import predictors
from banding_removal.model.classifiers import Ensemble, build_adversary
from banding_removal.processes.team import Team
from banding_removal.runs.checkpoint import Checkpoint, load_weights

log = logging.getLogger(__name__)

LARGE_L1 = 1.0  # l1_weight times the largest value of a target; 3e-6 for fastMRI
WIDE = 32  # channels of an adversary from which channels last is slower


def make_datasets(settings: Settings) -> tuple[SliceDataset, SliceDataset]:
    """Training and validation slices, indexed, checked and filtered.

    Raises:
        FileNotFoundError: a folder is missing or empty; the message says what to do.
        VolumeError: unusable files in either folder; all of them are named.
        ConfigError: the filters leave no volume, the masks do not suit one, or the training slices
            do not have the orientations that the settings need.
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
            f"folder that holds fastMRI's {folders[0].name}/*.h5 and {folders[1].name}/*.h5,\n"
            f"or make the phantom data set with: ipython scripts/make_phantom.py"
        ) from error
    volumes = [
        usable_volumes(part, skip_bad=settings.skip_bad_volumes)
        for part in (train_volumes, val_volumes)
    ]
    try:
        return _datasets(settings, *volumes)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def usable_volumes(volumes: list[Volume], *, skip_bad: bool) -> list[Volume]:
    """The volumes that can be trained on: with a target, large enough for SSIM, with a centre.

    Raises:
        VolumeError: there are others, and `skip_bad` does not leave them out with a warning.
    """
    found = {volume.path: _problem(volume) for volume in volumes}
    problems = {path: why for path, why in found.items() if why is not None}
    if problems:
        lines = [f"{path}: {why}" for path, why in problems.items()]
        others = len(found) - len(problems)
        if not skip_bad or not others:
            raise VolumeError.of_all(lines, others=others)
        log.warning("left out: %s", VolumeError.of_all(lines))
    return [volume for volume in volumes if volume.path not in problems]


def _problem(volume: Volume) -> str | None:
    """Why a volume cannot be trained on; None if it can."""
    if volume.target_size is None:
        return (
            "has no target image, reconstruction_rss: files of a test set can be reconstructed, "
            "but neither trained on nor evaluated"
        )
    if min(volume.height, volume.width, *volume.target_size) < WINDOW:
        return f"has images of less than {WINDOW} x {WINDOW} pixels"
    return None if volume.centre_measured else NO_CENTRE


def _datasets(
    settings: Settings, train_volumes: list[Volume], val_volumes: list[Volume]
) -> tuple[SliceDataset, SliceDataset]:
    masks = settings.mask_sampler()
    train_volumes = settings.train_filter.apply(train_volumes, settings.seed, "train_filter")
    val_volumes = settings.val_filter.apply(val_volumes, settings.seed, "val_filter")
    _warn_of_unit(settings.l1_weight, train_volumes)
    _warn_of_copies(train_volumes, val_volumes)
    if settings.paired:
        train_volumes = _transposable(train_volumes)
    widths = {volume.width for volume in (*train_volumes, *val_volumes)}
    if settings.rotate_probability > 0 or settings.paired:
        widths |= {volume.height for volume in train_volumes}
    for width in sorted(widths):
        masks.check(width)
    train_set = SliceDataset(
        train_volumes,
        masks,
        seed=settings.seed,
        rotate_probability=settings.rotate_probability,
        redraw_masks=settings.redraw_masks,
        offsets_from_data=settings.offsets_from_data,
        slice_range=settings.train_slices,
    )
    _check_orientations(settings, train_set)
    val_set = SliceDataset(
        val_volumes,
        masks,
        seed=settings.seed,
        offsets_from_data=settings.offsets_from_data,
        slice_range=settings.val_slices,
    )
    return train_set, val_set


def _warn_of_unit(l1_weight: float, volumes: list[Volume]) -> None:
    """Warn of targets so large that the L1 term, in their unit, outweighs 1 - SSIM."""
    largest = max(volume.data_range or 0.0 for volume in volumes)
    if l1_weight * largest > LARGE_L1:
        log.warning(
            "the targets reach %.3g: in this unit, the L1 term outweighs SSIM in the loss. Rescale "
            "k-space and targets to about 1e-4, as in fastMRI, or set l1_weight=0",
            largest,
        )


def _warn_of_copies(train_volumes: list[Volume], val_volumes: list[Volume]) -> None:
    """Warn of volumes that are in both sets: equal in name, number of bytes and largest value."""
    both = {(v.name, v.bytes, v.data_range) for v in train_volumes}
    copies = [v.name for v in val_volumes if (v.name, v.bytes, v.data_range) in both]
    if copies:
        log.warning(
            "%d of %d validation volumes seem to be training volumes as well (%s%s): validation "
            "does not show how the network does on other patients",
            *(len(copies), len(val_volumes), copies[0], ", ..." if len(copies) > 1 else ""),
        )


def _check_orientations(settings: Settings, train_set: SliceDataset) -> None:
    """Check that slices can be transposed if any are to be, and that an adversary sees both kinds.

    Raises:
        ConfigError: they cannot, or it does not.
    """
    if settings.paired:
        return  # every slice comes in both orientations
    with_slices = {train_set.volumes[volume].path: volume for volume, _ in train_set.places}
    full = sum(train_set.volumes[volume].measured is None for volume in with_slices.values())
    probability = settings.rotate_probability
    if probability > 0 and not full:
        raise ConfigError(
            f"rotate_probability={probability:g} transposes fully sampled slices before they are "
            f"undersampled, but all {len(with_slices)} training volumes were undersampled by the "
            "scanner: add fully sampled volumes, or set rotate_probability=0 to pretrain without"
        )
    if settings.adversary is None:
        return
    only = "upright" if probability == 0 else "transposed"
    if probability == 0 or (probability == 1 and full == len(with_slices)):
        raise ConfigError(
            f"the adversary tells transposed from upright slices, but with "
            f"rotate_probability={probability:g} all training slices are {only}: set "
            "rotate_probability=0.5, or paired=true"
        )


def _transposable(volumes: list[Volume]) -> list[Volume]:
    """The volumes that the scanner sampled fully.

    Raises:
        ConfigError: there are none.
    """
    kept = [volume for volume in volumes if volume.measured is None]
    if not kept:
        raise ConfigError(
            "paired needs training volumes that were fully sampled: all of these were "
            "undersampled by the scanner and cannot be transposed"
        )
    if len(kept) < len(volumes):
        left_out = [volume.name for volume in volumes if volume.measured is not None]
        log.warning(
            "left out: %d of %d training volumes were undersampled by the scanner, so they have no "
            "pair (%s%s)",
            len(left_out),
            len(volumes),
            left_out[0],
            ", ..." if len(left_out) > 1 else "",
        )
    return kept


def build_predictor(
    settings: Settings,
    device: torch.device,
    start: Checkpoint | None = None,
    start_path: Path | None = None,
) -> nn.Module:
    """The predictor that the settings describe, with weights from a checkpoint if one is given.

    It maps masked k-space, mask and numbers of centre lines to images, as `UnrolledNetwork.forward`
    does. Settings from a checkpoint must have been through `saved_settings`, since the module of a
    predictor package.module:Class is imported here.

    Args:
        settings: only those of the network are read.
        device: to put the predictor on.
        start: checkpoint with the weights.
        start_path: its path, for messages.

    Raises:
        CheckpointError: the weights do not fit; the differing keys are listed.
        ConfigError: the predictor cannot be imported or made.
    """
    sizes = {
        "cascades": settings.cascades,
        "chans": settings.chans,
        "pools": settings.pools,
        "sens_chans": settings.sens_chans,
        "sens_pools": settings.sens_pools,
        "sens_identity": settings.sens_identity,
        "dropout": settings.dropout,
    }
    try:
        predictor = predictors.build(settings.predictor, sizes, settings.predictor_kwargs)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if start is not None and start_path is not None:
        load_weights(predictor, start.predictor, start_path)
    return predictor.to(device)


def build_adversary_of(settings: Settings, device: torch.device) -> Ensemble | None:
    """The adversary that the settings describe; None where they have none."""
    if settings.adversary is None:
        return None
    adversary = build_adversary(
        settings.adversary, members=settings.adversary_members, chans=settings.adversary_chans
    )
    # On CPUs, channels last makes narrow adversaries several times faster. It makes the second
    # derivatives of the penalty a fifth slower for wide ones.
    chans = next(weight.shape[0] for weight in adversary.parameters() if weight.ndim == 4)
    if device.type == "cpu" and chans < WIDE:
        adversary.to(memory_format=torch.channels_last)
    return adversary.to(device)


def choose_device(name: str, team: Team | None = None) -> torch.device:
    """The device of that name; `auto` is the GPU if there is one, else the CPU.

    Each of several processes has a GPU of its own.

    Raises:
        ConfigError: this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d{1,4})?", name):
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:0, cuda:1, ...; got {name!r}")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name!r}: this machine has {torch.cuda.device_count()} GPUs")
    if device.type == "cuda" and team is not None and team.size > 1:
        return torch.device("cuda", torch.cuda.current_device())  # as chosen in `launch`
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # checkpoints store the random state of the current GPU
    return device
