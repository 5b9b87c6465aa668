"""Training, from the settings to the pictures: stage 1, and stage 2 against the adversary.

`train` reads top to bottom: data, networks, folder and log; then for each epoch train, validate,
write (figures, curves, grid, checkpoint). Stage 2 is the same loop with an adversary in it, and
eight processes take the same path as one.
"""

import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from banding_removal.config.settings import Settings, describe
from banding_removal.data.dataset import Batch, Draw, SliceDataset, collate
from banding_removal.data.sampler import EpochSampler
from banding_removal.errors import RunInUseError
from banding_removal.files import remove_leftovers
from banding_removal.pictures.curves import write_curves
from banding_removal.pictures.grids import write_grid, write_raw_grid
from banding_removal.processes.team import Team
from banding_removal.runs.build import choose_device, make_datasets
from banding_removal.runs.checkpoint import (
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    restore_random_state,
)
from banding_removal.runs.folder import LOCK, RunLock, latest_run, new_run_folder, show_as_latest
from banding_removal.runs.log import (
    METRICS,
    MetricsWriter,
    early_records,
    logging_to,
    peak_memory_gb,
    read_rows,
)
from banding_removal.runs.resume import Start, find_start, report_changes
from banding_removal.training.loading import batches_of, make_loader
from banding_removal.training.report import (
    epoch_line,
    grid_header,
    history_row,
    validation_in_words,
)
from banding_removal.training.run import (
    Progress,
    Run,
    end,
    keep_folder,
    roll_back,
    save,
    soften,
    stop,
)
from banding_removal.training.safeguard import (
    EARLY,
    FailingError,
    Safeguard,
    check_validation,
    warn_of_chance,
)
from banding_removal.training.step import (
    make_players,
    set_learning_rates,
    set_weights,
    train_step,
)
from banding_removal.training.validation import Validator, choose_display_slices
from banding_removal.training.warmup import warm_up

log = logging.getLogger(__name__)

SMOOTHING = 0.98  # of the running figures in the progress bar


def train(settings: Settings, team: Team | None = None) -> Path:
    """Run the training that `settings` describe and return the run's folder.

    Args:
        settings: of the run.
        team: the processes that train together; by default this one alone.

    Raises:
        FileNotFoundError: no data where `data_path` says, with what to do.
        VolumeError: unusable volumes, all named.
        CheckpointError: a checkpoint is missing, damaged, of another model, or cannot be written.
        RunInUseError: another process is writing to the run's folder.
        RunFailedError: it keeps failing, after all the rollbacks that it may have.
        Stopped: asked to by a signal; the state is saved.
        RankError: another process of the team failed.
    """
    team = team or Team()
    with team.naming_causes(), RunLock() as lock:
        with early_records() as early:
            run, start, begin = _prepare(settings, team, lock)
        with logging_to(run.folder, early, team.rank), team.naming_causes():
            _introduce(run)
            if start is not None and begin.folder is not None:
                _introduce_resume(run, start)
            elif start is not None:
                log.info("weights from %s (epoch %d)", begin.checkpoint, start.epoch)
            _train_epochs(run)
            log.info("look at %s", run.folder / "grids")
    return run.folder


def _prepare(settings: Settings, team: Team, lock: RunLock) -> tuple[Run, Checkpoint | None, Start]:
    # --- data: before a folder is made, so that a wrong path leaves nothing behind ---
    with team.first_before_others():
        train_set, val_set = make_datasets(settings)
    device = choose_device(settings.device, team)

    # --- networks ---
    begin = team.from_first(lambda: find_start(settings, lock))
    start = None if begin.checkpoint is None else load_checkpoint(begin.checkpoint)
    torch.manual_seed(settings.seed)
    players = make_players(settings, device, start, begin.checkpoint, team)
    team.seed_per_rank(settings.seed)
    progress = Progress()
    if start is not None and begin.checkpoint is not None and begin.folder is not None:
        players.restore(start, begin.checkpoint)
        progress = Progress(**{key: getattr(start, key) for key in vars(progress)})

    # --- folder ---
    folder = begin.folder
    if folder is None:
        folder = team.from_first(lambda: _new_folder(settings, lock))
    if team.is_first:
        remove_leftovers(folder)
        show_as_latest(folder)
    run = Run(
        settings=settings,
        folder=folder,
        lock=lock,
        device=device,
        team=team,
        train_set=train_set,
        val_set=val_set,
        players=players,
        progress=progress,
        safeguard=Safeguard(players=players),
    )
    return run, start, begin


def _new_folder(settings: Settings, lock: RunLock) -> Path:
    """A new folder, or that of a run of this name which was killed before anything was saved."""
    empty = latest_run(settings.logs, settings.name, containing=LOCK)
    if empty is not None and not list_checkpoints(empty) and not read_rows(empty / METRICS):
        try:
            lock.take(empty)
        except RunInUseError:
            log.info("%s has just been begun by another process", empty)
        else:
            return empty
    folder = new_run_folder(settings.logs, settings.name)
    lock.take(folder)
    return folder


def _introduce(run: Run) -> None:
    log.info("run folder %s, on %s, torch %s", run.folder, run.device, torch.__version__)
    if run.team.size > 1:
        place = (run.team.rank, run.team.size, os.getpid(), socket.gethostname())
        log.info("rank %d of %d: process %d on %s", *place)
    log.info("settings:\n  %s", "\n  ".join(describe(run.settings)))
    log.info(
        "training on %d slices of %d volumes, validating on %d of %d",
        *(len(run.train_set), len(run.train_set.volumes)),
        *(len(run.val_set), len(run.val_set.volumes)),
    )


def _introduce_resume(run: Run, start: Checkpoint) -> None:
    report_changes(start, run.settings, run.volumes)
    log.info("resumed after epoch %d, step %d", start.epoch, start.step)
    if start.epoch >= run.settings.epochs:
        log.warning("nothing is left to do: set epochs to more than %d", start.epoch)
    if len(start.rng) == run.team.size:
        restore_random_state(start.rng[run.team.rank])
        if run.players.replay is not None and start.replay:
            run.players.replay.add(start.replay[run.team.rank])
    else:
        log.warning("%d processes now, %d before: other batches", run.team.size, len(start.rng))


def _train_epochs(run: Run) -> None:
    """The epochs that are left, each followed by validation and everything written."""
    settings, team, progress, folder = run.settings, run.team, run.progress, run.folder
    sampler = EpochSampler(
        run.train_set,
        batch_size=settings.batch_size,
        seed=settings.seed,
        shuffle=True,
        fraction=settings.epoch_fraction,
        rank=team.rank,
        ranks=team.size,
        accumulate=settings.accumulate,
        paired=settings.paired,
    )
    loader = make_loader(run.train_set, sampler, settings.workers, run.device)
    display = choose_display_slices(run.val_set, settings.grid_slices)
    validator = Validator(
        run.val_set,
        display=display,
        device=run.device,
        workers=settings.workers,
        l1_weight=settings.l1_weight,
        team=team,
    )
    if progress.step == 0 and not progress.events:
        save(run)  # before anything is computed: what cannot be written is known at once
    metrics = None
    if team.is_first:
        raw = collate([run.train_set[_middle(run.train_set)]])
        write_raw_grid(folder / "grids" / "raw_grid.png", raw)
        metrics = MetricsWriter(folder, after=progress.step)

    try:
        if settings.adversary_warmup_steps and progress.step == 0 and not progress.events:
            _warm_up(run)
        run.train_set.close()  # no file is open when the loaders fork
        if run.removes_banding and not progress.start and progress.epoch < settings.epochs:
            _look_before(run, validator)
        soften(run)
        run.safeguard.keep(vars(progress), None, validated=True)
        while progress.epoch < settings.epochs:
            # --- train ---
            epoch = progress.epoch + 1
            sampler.epoch, sampler.start = progress.epoch, progress.batches
            try:
                train_epoch(run, loader, metrics)
            except (FloatingPointError, FailingError) as error:
                metrics = roll_back(run, error, metrics)
                continue
            row: dict[str, Any] = {"epoch": epoch, **epoch_figures(run)}

            # --- validate ---
            last = epoch == settings.epochs
            result = None
            if epoch % settings.validate_every == 0 or last:
                try:
                    result = validator.run(run.players.predictor)
                    if result is None:
                        stop(run)
                    row |= history_row(result)
                    if progress.start:
                        check_validation(progress.start, result.figures)
                except (FloatingPointError, FailingError) as error:
                    metrics = roll_back(run, error, metrics, to_validated=True)
                    continue
            warn_of_chance(row)
            progress.history.append(row)
            progress.epoch, progress.batches, progress.sums = epoch, 0, {}

            # --- write ---
            log.info("%s", epoch_line(row, settings.epochs, run.device))
            if metrics is not None:
                keep_folder(run)
                write_curves(
                    folder / "curves.png", progress.history, f"{folder.name}, epoch {epoch}"
                )
            if metrics is not None and result is not None:
                metrics.write("val", step=progress.step, epoch=epoch, values=result.figures)
                if display and (epoch % settings.grid_every == 0 or last):
                    write_grid(
                        folder / "grids" / f"epoch{epoch:03d}.png",
                        result.display,
                        header=grid_header(settings, folder, progress.history),
                        zero_filled=settings.grid_zero_filled,
                        window=settings.grid_window,
                    )
            save(run, row["train_loss"], validated=result is not None)
    finally:
        if metrics is not None:
            metrics.close()
        # Now: matplotlib's layout keeps this frame in a cycle of references, and workers that the
        # garbage collector ends take their time-out, five seconds each.
        del loader, validator


def _warm_up(run: Run) -> None:
    """The adversary's start, where there is one.

    Raises:
        Stopped: asked to by a signal; it is to be repeated, from what was saved before.
    """
    if run.players.adversary is not None:
        set_learning_rates(run.settings, run.players, 0)
        if not warm_up(run.settings, run.players, run.train_set, run.device, run.team):
            end(run)


def _look_before(run: Run, validator: Validator) -> None:
    """Validate the predictor that stage 2 begins with, to be compared with.

    Raises:
        Stopped: asked to by a signal.
    """
    result = validator.run(run.players.predictor)
    if result is None:
        stop(run)
    run.progress.start.update(result.figures)
    log.info("before: validation %s", validation_in_words(history_row(result)))


def train_epoch(run: Run, loader: DataLoader[Batch], metrics: MetricsWriter | None) -> None:
    """The steps that are left of an epoch, counted in `run.progress`.

    Raises:
        Stopped: asked to by a signal, in any process; the state after the last step is saved.
        FloatingPointError: a loss or a gradient is not finite, in any process.
        FailingError: the loss explodes.
    """
    settings, progress = run.settings, run.progress
    epoch = progress.epoch + 1
    run.players.predictor.train()
    feed = _Feed(loader, run.device)
    running: dict[str, float] = {}
    bar = tqdm(
        range(len(loader) // settings.batches_per_step),
        desc=f"epoch {epoch}/{settings.epochs}",
        leave=False,
        mininterval=1,
        disable=not run.team.is_first,
    )
    taken = progress.batches // (settings.accumulate * run.team.size)
    steps = taken + len(bar)  # of the epoch
    for done, _ in enumerate(bar, start=1):
        before = time.perf_counter()
        batches = feed.take(settings.batches_per_step)
        set_learning_rates(settings, run.players, progress.epoch + (taken + done - 1) / steps)
        set_weights(settings, run.players, progress.step + 1)
        values = train_step(settings, run.players, batches, epoch)
        seconds = {"step": time.perf_counter() - before, "wait": feed.waited()}
        values |= {f"{key}_ms": 1000 * value for key, value in seconds.items()}
        # One message a step: what is logged, and whether any process was asked to stop.
        values = run.team.mean({**values, "stop": float(run.team.stop.signal_name is not None)})
        asked_to_stop = values.pop("stop") > 0
        progress.step += 1
        progress.batches += settings.accumulate * run.team.size
        for key, value in {**values, "steps": 1.0}.items():
            progress.sums[key] = progress.sums.get(key, 0.0) + value
            running[key] = SMOOTHING * running.get(key, value) + (1 - SMOOTHING) * value
        run.safeguard.check_loss(running["loss"], done)
        bar.set_postfix_str(_bar_text(running, run.device), refresh=False)
        if metrics is not None and progress.step % settings.log_every == 0:
            if "accuracy" in values:
                values["accuracy_running"] = running["accuracy"]
            # All epochs have as many steps.
            values["total_steps"] = (progress.step + len(bar) - done) * settings.epochs / epoch
            values["memory_gb"] = peak_memory_gb(run.device)
            metrics.write("train", step=progress.step, epoch=epoch, values=values)
        if asked_to_stop:
            stop(run)
        if settings.checkpoint_every and progress.step % settings.checkpoint_every == 0:
            save(run, running["loss"] if done >= EARLY else None)


class _Feed:
    """Batches on the device, and how long they were waited for."""

    def __init__(self, loader: DataLoader[Batch], device: torch.device) -> None:
        self._batches = batches_of(loader)
        self._device = device
        self._waited = 0.0

    def take(self, count: int) -> Iterator[Batch]:
        """The next `count` batches, one at a time."""
        for _ in range(count):
            asked = time.perf_counter()
            batch = next(self._batches)
            self._waited += time.perf_counter() - asked
            yield batch.to(self._device)

    def waited(self) -> float:
        """Seconds waited since this was last asked."""
        seconds, self._waited = self._waited, 0.0
        return seconds


def epoch_figures(run: Run) -> dict[str, float]:
    """The mean of each figure over the steps of the epoch, and the learning rate."""
    sums = dict(run.progress.sums)
    steps = sums.pop("steps")
    names = {"loss": "train_loss", "ssim": "train_ssim"}
    lr = run.players.optimizer.param_groups[0]["lr"]
    return {"lr": lr, **{names.get(key, key): value / steps for key, value in sums.items()}}


def _middle(dataset: SliceDataset) -> Draw:
    """A draw in the middle of the first volume, where there is anatomy."""
    count = sum(1 for volume, _ in dataset.places if volume == dataset.places[0][0])
    return Draw(epoch=0, index=count // 2)


def _bar_text(running: dict[str, float], device: torch.device) -> str:
    text = f"loss {running['loss']:.4f}, {peak_memory_gb(device):.1f} GB"
    return f"{text}, accuracy {running['accuracy']:.2f}" if "accuracy" in running else text
