"""The data sets that settings describe: indexed, checked and filtered."""

import logging

from banding_removal.config.settings import Settings
from banding_removal.data.dataset import NO_CENTRE, SliceDataset
from banding_removal.data.index import index_folder
from banding_removal.data.volume import Volume, VolumeError
from banding_removal.errors import ConfigError
from banding_removal.metrics.image_quality import WINDOW

log = logging.getLogger(__name__)

LARGE_L1 = 1.0  # l1_weight times the largest value of a target; 3e-6 for fastMRI


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
    _report_copies(train_volumes, val_volumes)
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


def _report_copies(train_volumes: list[Volume], val_volumes: list[Volume]) -> None:
    """Log which volumes are in both sets: equal in name, number of bytes and largest value."""
    training = {(v.name, v.bytes, v.data_range) for v in train_volumes}
    copies = [v.name for v in val_volumes if (v.name, v.bytes, v.data_range) in training]
    if copies:
        log.info(
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
