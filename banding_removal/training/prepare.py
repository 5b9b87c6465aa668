"""From settings to a run that is ready to train: data, networks, start, folder."""

import logging
import os
import socket
from pathlib import Path

import torch

from banding_removal.config.overrides import describe
from banding_removal.config.settings import Settings
from banding_removal.data.sampler import EpochSampler
from banding_removal.errors import ConfigError, RunInUseError
from banding_removal.files import remove_leftovers
from banding_removal.processes.team import Team
from banding_removal.processes.threads import set_threads
from banding_removal.runs.build import choose_device
from banding_removal.runs.checkpoint import Checkpoint, list_checkpoints, restore_random_state
from banding_removal.runs.datasets import make_datasets
from banding_removal.runs.folder import latest_run, new_run_folder, show_as_latest
from banding_removal.runs.lock import LOCK, RunLock
from banding_removal.runs.metrics_file import METRICS, read_rows
from banding_removal.runs.resume import decide_start, report_changes
from banding_removal.training.loading import Prefetcher
from banding_removal.training.output import RunOutput
from banding_removal.training.players import make_players
from banding_removal.training.progress import Progress
from banding_removal.training.run import Run
from banding_removal.training.safeguard import Safeguard
from banding_removal.training.validation import Validator, choose_display_slices

log = logging.getLogger(__name__)


def prepare(settings: Settings, team: Team, lock: RunLock) -> Run:
    """The run that the settings describe; a run that is continued has its state restored.

    `lock` takes the run's folder.

    Raises:
        ConfigError: settings that contradict each other, the data or the machine.
        FileNotFoundError: no data where `data_path` says.
        VolumeError: unusable volumes, all named.
        CheckpointError: a checkpoint is missing, damaged, or of another model.
        RunInUseError: another process is writing to the run to continue.
    """
    # Data before the folder: a wrong path leaves nothing behind.
    with team.first_before_others():
        train_set, val_set = make_datasets(settings)
    device = choose_device(settings.device, team)
    volumes = [*train_set.volumes, *val_set.volumes]
    set_threads(volumes, count=settings.threads, processes=team.local_size)
    if settings.splits_pairs(team.size) and team.size % 2:
        raise ConfigError(f"split_pairs=true needs an even number of processes, not {team.size}")
    start = team.from_first(lambda: decide_start(settings, lock))

    torch.manual_seed(settings.seed)
    players = make_players(settings, device, start.checkpoint, start.path, team)
    team.seed_per_rank(settings.seed)
    progress = Progress()
    if start.everything and start.checkpoint is not None and start.path is not None:
        # Earlier reconstructions belong to this process only if there are as many as before.
        same = len(start.checkpoint.rng) == team.size and start.checkpoint.replay
        replay = start.checkpoint.replay[team.rank] if same else []
        players.load_state_dict({**vars(start.checkpoint), "replay": replay}, start.path)
        progress = Progress(**{key: getattr(start.checkpoint, key) for key in vars(progress)})

    folder = start.folder or team.from_first(lambda: _new_folder(settings, lock))
    if team.is_first:
        remove_leftovers(folder)
        show_as_latest(folder)
    run = Run(
        settings=settings,
        device=device,
        team=team,
        train_set=train_set,
        val_set=val_set,
        players=players,
        progress=progress,
        safeguard=Safeguard(players=players, progress=progress),
        output=RunOutput(folder, lock, settings, team),
    )
    _log_run(run)
    if start.everything and start.checkpoint is not None:
        _log_resume(run, start.checkpoint)
        _restore_random(run, start.checkpoint)
    elif start.checkpoint is not None:
        log.info("starting with the weights from %s (epoch %d)", start.path, start.checkpoint.epoch)
    return run


def _new_folder(settings: Settings, lock: RunLock) -> Path:
    """A new folder, or that of a run of this name that was killed before anything was saved."""
    empty = latest_run(settings.logs, settings.name, containing=LOCK)
    if empty is not None and not list_checkpoints(empty) and not read_rows(empty / METRICS):
        try:
            lock.take(empty)
        except RunInUseError:
            log.info("another process is using %s: making a new folder", empty)
        else:
            if lock.is_enforced:  # otherwise it may belong to a run that has just started
                return empty
    folder = new_run_folder(settings.logs, settings.name)
    lock.take(folder)
    return folder


def _log_run(run: Run) -> None:
    threads = f" ({torch.get_num_threads()} threads)" if run.device.type == "cpu" else ""
    log.info(
        "run folder %s, on %s%s, torch %s",
        *(run.output.folder, run.device, threads, torch.__version__),
    )
    if run.team.size > 1:
        place = (run.team.rank, run.team.size, os.getpid(), socket.gethostname())
        log.info("rank %d of %d: process %d on %s", *place)
    log.info("settings:\n  %s", "\n  ".join(describe(run.settings)))
    log.info(
        "training on %d slices of %d volumes, validating on %d of %d",
        *(len(run.train_set), len(run.train_set.volumes)),
        *(len(run.val_set), len(run.val_set.volumes)),
    )


def _log_resume(run: Run, checkpoint: Checkpoint) -> None:
    report_changes(checkpoint, run.settings, run.volumes)
    log.info("resumed after epoch %d, step %d", checkpoint.epoch, checkpoint.step)
    if checkpoint.epoch >= run.settings.epochs:
        log.warning("nothing is left to do: set epochs to more than %d", checkpoint.epoch)


def _restore_random(run: Run, checkpoint: Checkpoint) -> None:
    """Restore this process's random numbers."""
    if len(checkpoint.rng) != run.team.size:
        log.warning(
            "resumed with %d processes instead of %d: batches will differ from here on",
            *(run.team.size, len(checkpoint.rng)),
        )
        return
    restore_random_state(checkpoint.rng[run.team.rank])


def make_prefetcher(run: Run) -> Prefetcher:
    """The training batches of this process, in the order of each epoch."""
    settings, team = run.settings, run.team
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
        split_pairs=settings.splits_pairs(team.size),
    )
    return Prefetcher(run.train_set, sampler, settings.workers, run.device, team.stop)


def make_validator(run: Run) -> Validator:
    """The validation of this run."""
    return Validator(
        run.val_set,
        display=choose_display_slices(run.val_set, run.settings.grid_slices),
        device=run.device,
        workers=run.settings.workers,
        l1_weight=run.settings.l1_weight,
        team=run.team,
    )
