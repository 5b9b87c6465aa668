"""Training, from the settings to the pictures: stage 1, and stage 2 against the adversary.

`train` reads top to bottom: data, networks, folder and log; then for each epoch train, validate,
write (figures, curves, grid, checkpoint). Stage 2 is the same loop with an adversary in it.
"""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from banding_removal.assembly import (
    choose_device,
    make_datasets,
    make_loader,
)
from banding_removal.checkpoint import (
    FOLDER,
    Checkpoint,
    CheckpointError,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from banding_removal.config import Settings, describe, differences, plain
from banding_removal.curves import write_curves
from banding_removal.grids import write_grid, write_raw_grid
from banding_removal.report import epoch_line, grid_header, history_row
from banding_removal.run_folder import latest_run, new_run_folder, show_as_latest
from banding_removal.run_log import MetricsWriter, early_records, logging_to, peak_memory_gb
from banding_removal.steps import (
    Players,
    accumulate_gradients,
    make_players,
    set_learning_rates,
    step_optimizers,
)
from banding_removal.validation import choose_display_slices, validate
from data.dataset import Batch, Draw, SliceDataset, collate
from data.sampler import EpochSampler

log = logging.getLogger(__name__)

# Between runs that have the same data and mean the same thing, only these may differ unnoticed.
NOT_COMPARED = ("resume", "restart", "after", "epochs")
SMOOTHING = 0.98  # of the running figures in the progress bar


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
    with early_records() as early:
        train_set, val_set = make_datasets(settings)
    device = choose_device(settings.device)

    # --- networks ---
    start_path = find_start(settings)
    start = None if start_path is None else load_checkpoint(start_path)
    torch.manual_seed(settings.seed)
    players = make_players(settings, device, start, start_path)
    progress = Progress()
    if start is not None and start_path is not None and settings.resume is not None:
        players.restore(start, start_path)
        progress = Progress(epoch=start.epoch, step=start.step, history=start.history)

    # --- folder and log ---
    if start_path is not None and settings.resume is not None:
        folder = _folder_of(start_path)
    else:
        folder = new_run_folder(settings.logs, settings.name)
    show_as_latest(folder)
    with logging_to(folder, early):
        log.info("run folder %s, on %s, torch %s", folder, device, torch.__version__)
        log.info("settings:\n  %s", "\n  ".join(describe(settings)))
        log.info(
            "training on %d slices of %d volumes, validating on %d of %d",
            *(len(train_set), len(train_set.volumes), len(val_set), len(val_set.volumes)),
        )
        if start is not None and settings.resume is not None:
            _report_changes(start, settings, volume_names(train_set, val_set))
            log.info("resumed from %s after epoch %d", start_path, start.epoch)
            if start.epoch >= settings.epochs:
                log.warning("nothing is left to do: set epochs to more than %d", start.epoch)
            restore_random_state(start.rng)
        elif start is not None:
            log.info("weights from %s (epoch %d)", start_path, start.epoch)
        _train_epochs(settings, folder, device, train_set, val_set, players, progress)
        log.info("look at %s", folder / "grids")
    return folder


def find_start(settings: Settings) -> Path | None:
    """The checkpoint to begin from: `resume`, else `restart`, else the newest run called `after`.

    Raises:
        CheckpointError: it is not there; for `after`, the message says how to make it.
    """
    if settings.resume is not None or settings.restart is not None:
        return find_checkpoint(settings.resume or settings.restart or Path())
    if settings.after is None:
        return None
    folder = latest_run(settings.logs, settings.after, containing=f"{FOLDER}/*.pt")
    if folder is None:
        raise CheckpointError(
            f"no pretrained predictor: {settings.logs} holds no run called {settings.after} with a "
            f"checkpoint. Pretrain one first (ipython scripts/{settings.after}.py), or name one "
            f"with restart=..."
        )
    return find_checkpoint(folder)


def _train_epochs(
    settings: Settings,
    folder: Path,
    device: torch.device,
    train_set: SliceDataset,
    val_set: SliceDataset,
    players: Players,
    progress: Progress,
) -> None:
    """The epochs that are left, each followed by validation and everything written."""
    sampler = EpochSampler(
        train_set,
        batch_size=settings.batch_size,
        seed=settings.seed,
        shuffle=True,
        fraction=settings.epoch_fraction,
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
            set_learning_rates(settings, players, progress.epoch)
            progress.epoch += 1
            figures = train_epoch(settings, device, loader, players, metrics, progress)

            # --- validate ---
            epoch, history = progress.epoch, progress.history
            history.append({"epoch": epoch, **figures})
            last = epoch == settings.epochs
            if epoch % settings.validate_every == 0 or last:
                result = validate(
                    players.predictor,
                    val_loader,
                    val_set,
                    device=device,
                    l1_weight=settings.l1_weight,
                    display=display,
                )
                metrics.write("val", step=progress.step, epoch=epoch, values=result.figures)
                history[-1] |= history_row(result)
                if display and (epoch % settings.grid_every == 0 or last):
                    write_grid(
                        folder / "grids" / f"epoch{epoch:03d}.png",
                        result.display,
                        header=grid_header(settings, folder, history),
                        zero_filled=settings.grid_zero_filled,
                        window=settings.grid_window,
                    )

            # --- write ---
            log.info("%s", epoch_line(history[-1], settings.epochs, device))
            write_curves(folder / "curves.png", history, f"{folder.name}, epoch {epoch}")
            volumes = volume_names(train_set, val_set)
            checkpoint = make_checkpoint(settings, players, progress, volumes)
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
    players: Players,
    metrics: MetricsWriter,
    progress: Progress,
) -> dict[str, float]:
    """One epoch's batches, counted in `progress`; returns the mean of each figure.

    Gradients of `accumulate` batches are averaged for one step of the optimisers; what is left
    over at the end of the epoch makes a smaller step.
    """
    players.predictor.train()
    sums: dict[str, float] = {}
    running: dict[str, float] = {}
    bar = tqdm(loader, desc=f"epoch {progress.epoch}/{settings.epochs}", leave=False, mininterval=1)
    before = time.perf_counter()
    micro_batches = len(loader)
    for index, on_cpu in enumerate(bar):
        waited = time.perf_counter() - before
        batch = on_cpu.to(device)
        first = index - index % settings.accumulate
        together = min(settings.accumulate, micro_batches - first)
        values = accumulate_gradients(settings, players, batch, progress.epoch, together)
        if index + 1 == first + together:
            values |= step_optimizers(settings, players, batch)
            progress.step += 1
        now = time.perf_counter()
        values |= {"step_ms": 1000 * (now - before), "wait_ms": 1000 * waited}
        before = now
        for key, value in values.items():
            sums[key] = sums.get(key, 0.0) + value
            running[key] = SMOOTHING * running.get(key, value) + (1 - SMOOTHING) * value
        bar.set_postfix_str(_bar_text(running, device), refresh=False)
        if index + 1 == first + together and progress.step % settings.log_every == 0:
            if "accuracy" in values:
                values["accuracy_running"] = running["accuracy"]
            metrics.write("train", step=progress.step, epoch=progress.epoch, values=values)
    steps = -(-micro_batches // settings.accumulate)
    per_step = ("grad_norm", "adversary_grad_norm")
    means = {k: v / (steps if k in per_step else micro_batches) for k, v in sums.items()}
    lr = players.optimizer.param_groups[0]["lr"]
    return {"lr": lr, **{_EPOCH_NAMES.get(key, key): value for key, value in means.items()}}


_EPOCH_NAMES = {"loss": "train_loss", "ssim": "train_ssim"}


def make_checkpoint(
    settings: Settings, players: Players, progress: Progress, volumes: dict[str, list[str]]
) -> Checkpoint:
    """The state of the run as plain data."""
    optimizer, adversary = players.adversary_optimizer, players.adversary
    return Checkpoint(
        epoch=progress.epoch,
        step=progress.step,
        predictor=players.predictor.state_dict(),
        optimizer=players.optimizer.state_dict(),
        adversary=None if adversary is None else adversary.state_dict(),
        adversary_optimizer=None if optimizer is None else optimizer.state_dict(),
        rng=random_state(),
        history=progress.history,
        settings=plain(settings),
        volumes=volumes,
    )


def _folder_of(checkpoint: Path) -> Path:
    """The run's folder that a checkpoint lies in, for a resume."""
    path = checkpoint.resolve()
    if path.parent.name != FOLDER:
        raise CheckpointError(
            f"cannot resume from {checkpoint}: it does not lie in the {FOLDER} folder of a run. "
            f"Its weights can be used with restart={checkpoint}"
        )
    folder = path.parent.parent
    newest = list_checkpoints(folder)[-1]
    if path != newest:
        raise CheckpointError(
            f"cannot resume from {checkpoint}: its run has gone on to {newest.name} and "
            f"would be overwritten. Go on from there with resume={folder}, or begin a new run "
            f"from these weights with restart={checkpoint}"
        )
    return folder


def volume_names(train_set: SliceDataset, val_set: SliceDataset) -> dict[str, list[str]]:
    """File names of both data sets, to notice other data at a resume."""
    sets = {"training": train_set, "validation": val_set}
    return {part: [volume.name for volume in data.volumes] for part, data in sets.items()}


def _report_changes(start: Checkpoint, settings: Settings, volumes: dict[str, list[str]]) -> None:
    old, new = (
        {key: value for key, value in content.items() if key not in NOT_COMPARED}
        for content in (start.settings, plain(settings))
    )
    for change in differences(old, new):
        log.warning("setting changed since the checkpoint: %s", change)
    for part, names in volumes.items():
        was, now = set(start.volumes[part]), set(names)
        if was != now:
            log.warning(
                "other %s volumes than at the checkpoint: %d new, %d missing",
                *(part, len(now - was), len(was - now)),
            )


def _middle(dataset: SliceDataset) -> Draw:
    """A draw in the middle of the first volume, where there is anatomy."""
    count = sum(1 for volume, _ in dataset.places if volume == dataset.places[0][0])
    return Draw(epoch=0, index=count // 2)


def _bar_text(running: dict[str, float], device: torch.device) -> str:
    text = f"loss {running['loss']:.4f}, {peak_memory_gb(device):.1f} GB"
    return f"{text}, accuracy {running['accuracy']:.2f}" if "accuracy" in running else text
