"""Stage 1: training the predictor, from the settings to the pictures.

`train` reads top to bottom: folder and log, data, model and optimiser, then for each epoch
train, validate, write (figures, curves, grid, checkpoint).
"""

import logging
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from banding_removal.checkpoint import (
    FOLDER,
    Checkpoint,
    CheckpointError,
    find_checkpoint,
    load_checkpoint,
    load_weights,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from banding_removal.config import ConfigError, Settings, describe, differences, plain
from banding_removal.curves import write_curves
from banding_removal.grids import write_grid, write_raw_grid
from banding_removal.losses import finite, reconstruction_loss
from banding_removal.run_folder import new_run_folder, show_as_latest
from banding_removal.run_log import MetricsWriter, logging_to, peak_memory_gb
from banding_removal.validation import ValidationResult, choose_display_slices, validate
from data.dataset import Batch, Draw, SliceDataset, collate
from data.index import Volume, index_folder
from data.sampler import EpochSampler
from model.predictor import Predictor

log = logging.getLogger(__name__)

# Between runs that have the same data and mean the same thing, only these may differ unnoticed.
NOT_COMPARED = ("resume", "restart", "epochs")
SMOOTHING = 0.98  # of the loss in the progress bar


@dataclass(kw_only=True)
class Progress:
    """How far a run has come; `history` has one row an epoch."""

    epoch: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


def train(settings: Settings) -> Path:
    """Run the training that `settings` describe and return the run's folder.

    Raises:
        FileNotFoundError: no data where `data_path` says, with what to do.
        VolumeError: unusable volumes, all named.
        CheckpointError: a checkpoint is missing, damaged, of another model, or cannot be written.
        FloatingPointError: the loss is not finite; file and slice are named.
    """
    # --- data: before a folder is made, so that a wrong path leaves nothing behind ---
    train_set, val_set = make_datasets(settings)
    device = choose_device(settings.device)

    # --- where to start ---
    source = settings.resume or settings.restart
    start_path = None if source is None else find_checkpoint(source)
    start = None if start_path is None else load_checkpoint(start_path)
    torch.manual_seed(settings.seed)
    predictor = build_predictor(settings, device, start, start_path)
    optimizer = torch.optim.Adam(predictor.parameters(), lr=settings.lr)

    if settings.resume is not None and start_path is not None:
        folder = _folder_of(start_path)
    else:
        folder = new_run_folder(settings.logs, settings.name)
    show_as_latest(folder)
    with logging_to(folder):
        log.info("run folder %s, on %s, torch %s", folder, device, torch.__version__)
        log.info("settings:\n  %s", "\n  ".join(describe(settings)))
        log.info(
            "training on %d slices of %d volumes, validating on %d of %d",
            *(len(train_set), len(train_set.volumes), len(val_set), len(val_set.volumes)),
        )
        progress = Progress()
        if start is not None and settings.resume is not None:
            progress = Progress(epoch=start.epoch, step=start.step, history=start.history)
            optimizer.load_state_dict(start.optimizer)
            restore_random_state(start.rng)
            _report_changes(start.settings, plain(settings))
            log.info("resumed from %s after epoch %d", start_path, start.epoch)
        elif start is not None:
            log.info("weights from %s (epoch %d)", start_path, start.epoch)
        _train_epochs(settings, folder, device, train_set, val_set, predictor, optimizer, progress)
        log.info("look at %s", folder / "grids")
    return folder


def _train_epochs(
    settings: Settings,
    folder: Path,
    device: torch.device,
    train_set: SliceDataset,
    val_set: SliceDataset,
    predictor: Predictor,
    optimizer: torch.optim.Adam,
    progress: Progress,
) -> None:
    """The epochs that are left, each followed by validation and everything written."""
    sampler = EpochSampler(
        train_set, batch_size=settings.batch_size, seed=settings.seed, shuffle=True
    )
    val_sampler = EpochSampler(val_set, batch_size=1, seed=settings.seed, shuffle=False)
    loader = make_loader(train_set, sampler, settings.workers, device)
    val_loader = make_loader(val_set, val_sampler, settings.workers, device)
    display = choose_display_slices(val_set, settings.grid_slices)
    write_raw_grid(folder / "grids" / "raw_grid.png", collate([train_set[_middle(train_set)]]))
    train_set.close()  # no file is open when the loaders fork

    metrics = MetricsWriter(folder)
    try:
        while progress.epoch < settings.epochs:
            # --- train ---
            sampler.epoch = progress.epoch
            lr = learning_rate(settings, progress.epoch)
            for group in optimizer.param_groups:
                group["lr"] = lr
            progress.epoch += 1
            figures = train_epoch(settings, device, loader, predictor, optimizer, metrics, progress)

            # --- validate ---
            result = validate(
                predictor,
                val_loader,
                val_set,
                device=device,
                l1_weight=settings.l1_weight,
                display=display,
            )
            epoch, history = progress.epoch, progress.history
            metrics.write("val", step=progress.step, epoch=epoch, values=result.figures)

            # --- write ---
            history.append({"epoch": epoch, "lr": lr, **figures, **_prefixed(result)})
            log.info("%s", _epoch_line(history[-1], settings.epochs, device))
            write_curves(folder / "curves.png", history, f"{folder.name}, epoch {epoch}")
            if display and (epoch % settings.grid_every == 0 or epoch == settings.epochs):
                write_grid(
                    folder / "grids" / f"epoch{epoch:03d}.png",
                    result.display,
                    header=_grid_header(settings, folder, history),
                    zero_filled=settings.grid_zero_filled,
                    window=settings.grid_window,
                )
            checkpoint = Checkpoint(
                epoch=epoch,
                step=progress.step,
                predictor=predictor.state_dict(),
                optimizer=optimizer.state_dict(),
                rng=random_state(),
                history=history,
                settings=plain(settings),
            )
            save_checkpoint(folder, checkpoint, settings.keep_checkpoints)
    finally:
        metrics.close()
        # Now: matplotlib's layout keeps this frame in a cycle of references, and workers that the
        # garbage collector ends take their time-out, five seconds each.
        del loader, val_loader


def train_epoch(
    settings: Settings,
    device: torch.device,
    loader: DataLoader[Batch],
    predictor: Predictor,
    optimizer: torch.optim.Adam,
    metrics: MetricsWriter,
    progress: Progress,
) -> dict[str, float]:
    """One pass over the data, counted in `progress`; returns the epoch's mean figures."""
    predictor.train()
    sums = {"loss": 0.0, "ssim": 0.0, "grad_norm": 0.0, "step_ms": 0.0, "wait_ms": 0.0}
    smoothed = None
    bar = tqdm(loader, desc=f"epoch {progress.epoch}/{settings.epochs}", leave=False, mininterval=1)
    before = time.perf_counter()
    for on_cpu in bar:
        waited = time.perf_counter() - before
        batch = on_cpu.to(device)
        values = train_step(settings, predictor, optimizer, batch)
        progress.step += 1
        now = time.perf_counter()
        values |= {"step_ms": 1000 * (now - before), "wait_ms": 1000 * waited}
        before = now
        for key, value in values.items():
            sums[key] += value
        smoothed = _smooth(smoothed, values["loss"])
        bar.set_postfix_str(f"loss {smoothed:.4f}, {peak_memory_gb(device):.1f} GB", refresh=False)
        if progress.step % settings.log_every == 0:
            metrics.write("train", step=progress.step, epoch=progress.epoch, values=values)
    count = len(loader)
    names = {"loss": "train_loss", "ssim": "train_ssim"}
    return {names.get(key, key): total / count for key, total in sums.items()}


def train_step(
    settings: Settings, predictor: Predictor, optimizer: torch.optim.Adam, batch: Batch
) -> dict[str, float]:
    """Forward, backward, Adam.

    Raises:
        FloatingPointError: loss or gradient is not finite; the weights are as before the step.
    """
    assert batch.target is not None, "the training set is made with require_target"
    output = predictor(batch.masked_kspace, batch.mask, batch.acs_lines)
    loss, similarity = reconstruction_loss(
        output, batch.target, batch.data_range, settings.l1_weight
    )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    limit = float("inf") if settings.clip_grad_norm is None else settings.clip_grad_norm
    norm: Tensor = torch.nn.utils.clip_grad_norm_(predictor.parameters(), limit)
    if not finite(loss, norm):
        raise FloatingPointError(
            f"loss {loss.item()}, gradient norm {norm.item()} on {batch.describe()}"
        )
    optimizer.step()
    return {"loss": loss.item(), "ssim": similarity.item(), "grad_norm": norm.item()}


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
    try:
        return _datasets(settings, train_volumes, val_volumes)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _datasets(
    settings: Settings, train_volumes: list[Volume], val_volumes: list[Volume]
) -> tuple[SliceDataset, SliceDataset]:
    masks = settings.mask_sampler()
    return (
        SliceDataset(
            settings.train_filter.apply(train_volumes, settings.seed),
            masks,
            seed=settings.seed,
            rotate_probability=settings.rotate_probability,
            redraw_masks=settings.redraw_masks,
            offsets_from_data=settings.offsets_from_data,
            slice_range=settings.train_slices,
        ),
        SliceDataset(
            settings.val_filter.apply(val_volumes, settings.seed),
            masks,
            seed=settings.seed,
            offsets_from_data=settings.offsets_from_data,
            slice_range=settings.val_slices,
        ),
    )


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
        dropout=settings.dropout,
    )
    if start is not None and start_path is not None:
        load_weights(predictor, start.predictor, start_path)
    if device.type == "cpu":
        # A fifth to a third off the time of a step on CPUs; nothing but the layout changes.
        predictor.to(memory_format=torch.channels_last)
    return predictor.to(device)


def make_loader(
    dataset: SliceDataset, sampler: EpochSampler, workers: int, device: torch.device
) -> DataLoader[Batch]:
    """A loader that yields `Batch`es in the sampler's order."""
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # collate turns its Examples into Batches
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        # Its own generator: the loader draws seeds, and must not move the one that dropout uses.
        generator=torch.Generator(),
    )


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` is the GPU where there is one.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r}: {str(error).splitlines()[0]}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name!r}: this machine has {torch.cuda.device_count()} GPUs")
    return device


def learning_rate(settings: Settings, epoch: int) -> float:
    """Rate of an epoch, counted from 0: lr, times `lr_drop_factor` every `lr_drop_every` epochs."""
    drops = 0 if settings.lr_drop_every is None else epoch // settings.lr_drop_every
    return settings.lr * settings.lr_drop_factor**drops


def _folder_of(checkpoint: Path) -> Path:
    """The run's folder that a checkpoint lies in, for a resume."""
    path = checkpoint.resolve()
    if path.parent.name != FOLDER:
        raise CheckpointError(
            f"cannot resume from {checkpoint}: it does not lie in the {FOLDER} folder of a run. "
            f"Its weights can be used with restart={checkpoint}"
        )
    return path.parent.parent


def _report_changes(old: dict[str, Any], new: dict[str, Any]) -> None:
    kept = {key: value for key, value in new.items() if key not in NOT_COMPARED}
    was = {key: value for key, value in old.items() if key not in NOT_COMPARED}
    for change in differences(was, kept):
        log.warning("setting changed since the checkpoint: %s", change)


def _middle(dataset: SliceDataset) -> Draw:
    """A draw in the middle of the first volume, where there is anatomy."""
    count = sum(1 for volume, _ in dataset.places if volume == dataset.places[0][0])
    return Draw(epoch=0, index=count // 2)


def _smooth(average: float | None, value: float) -> float:
    return value if average is None else SMOOTHING * average + (1 - SMOOTHING) * value


def _prefixed(result: ValidationResult) -> dict[str, Any]:
    """The history's part of a validation: all figures, and those of each volume."""
    return {
        **{f"val_{key}": value for key, value in result.figures.items()},
        "volumes": {name: asdict(quality) for name, quality in result.volumes.items()},
    }


def _epoch_line(row: dict[str, Any], epochs: int, device: torch.device) -> str:
    return (
        f"epoch {row['epoch']}/{epochs}: loss {row['train_loss']:.4f}, validation loss "
        f"{row['val_loss']:.4f}, SSIM {row['val_ssim']:.4f}, NMSE {row['val_nmse']:.4f}, PSNR "
        f"{row['val_psnr']:.2f} dB; {row['step_ms']:.0f} ms a step (of which {row['wait_ms']:.0f} "
        f"waiting for data), {peak_memory_gb(device):.1f} GB"
    )


def _grid_header(settings: Settings, folder: Path, history: list[dict[str, Any]]) -> list[str]:
    """The run's settings and its validation history, the newest epochs if there are many."""
    masks = settings.acs_fractions if settings.mask.endswith("_fraction") else settings.acs_lines
    return [
        f"{folder.name}, epoch {history[-1]['epoch']} of {settings.epochs}: "
        f"{settings.cascades} cascades, {settings.chans} channels, {settings.pools} poolings; "
        f"mask {settings.mask}, acceleration {settings.accelerations}, centre {masks}; "
        f"lr {history[-1]['lr']:.3g}, seed {settings.seed}",
        *(
            f"epoch {row['epoch']}: validation loss {row['val_loss']:.4f}  "
            f"SSIM {row['val_ssim']:.4f}  NMSE {row['val_nmse']:.4f}  PSNR {row['val_psnr']:.2f} dB"
            for row in history[-5:]
        ),
    ]
