"""Trains a run from its settings: stage 1, and stage 2 against banding.

In this order: data, networks, folder and log (`prepare`); what comes before the first epoch
(`_begin`); then for every epoch its steps, validation, and what is written (`train_epochs`).
Stage 2 is the same loop with an adversary or a streak loss in its steps (`step`). A run that fails
goes back to its last good state (`safeguard`). Several processes run the same code as one.
"""

import logging
from pathlib import Path

from banding_removal.config.settings import Settings
from banding_removal.data.batch import collate
from banding_removal.data.dataset import Draw
from banding_removal.pictures.input_grid import write_input_grid
from banding_removal.pictures.run_page import NAME as PAGE
from banding_removal.processes.signals import Doing
from banding_removal.processes.team import Team
from banding_removal.runs.lock import RunLock
from banding_removal.runs.log import early_records, logging_to
from banding_removal.training.compute import out_of_memory_advice
from banding_removal.training.prepare import make_prefetcher, make_validator, prepare
from banding_removal.training.run import Run
from banding_removal.training.safeguard import FailingRun
from banding_removal.training.step import train_step
from banding_removal.training.validation import Validator
from banding_removal.training.warmup import warm_up

log = logging.getLogger(__name__)


def train(settings: Settings, team: Team | None = None) -> Path:
    """Run the training that `settings` describe and return the run's folder.

    `team` is the processes that train together; by default, it is this one alone.

    Raises:
        ConfigError: settings that contradict each other, the data or the machine.
        FileNotFoundError: there are no data in `data_path`; the message says what to do.
        VolumeError: some volumes are unusable; the message names all of them.
        CheckpointError: a checkpoint is missing, damaged, of another model, or cannot be written.
        RunInUseError: another process is writing to the run's folder.
        RunFailedError: the run fails again after all rollbacks that the settings allow.
        Stopped: a signal has asked for it; the state is saved.
        RankError: another process of the team failed.
    """
    team = team or Team()
    with team.naming_causes(), RunLock() as lock:
        with early_records(team.rank) as early:
            run = prepare(settings, team, lock)
        try:
            with logging_to(run.output.folder, early, team.rank), team.naming_causes():
                with out_of_memory_advice(run.players.predictor):
                    train_epochs(run)
                log.info("look at %s", run.output.folder / PAGE)
        finally:
            run.output.close(run.progress)
    return run.output.folder


def train_epochs(run: Run) -> None:
    """Train, validate and write files for each epoch that is left; after a failure, roll back.

    Raises:
        Stopped: a signal in any process has asked for it; the state is saved.
        RunFailedError: the run keeps failing.
    """
    prefetcher, validator = make_prefetcher(run), make_validator(run)
    if run.is_new:
        run.save()  # before anything is computed: if it cannot be written, this shows at once
    try:
        with run.output.recording(run.progress.step), run.team.stop.while_doing(Doing.WORKING):
            _begin(run, validator)
            for _ in run.epochs_left():
                try:
                    for groups in run.steps_left(prefetcher):
                        values = train_step(run.players, groups, run.step_settings())
                        run.after_step(values | prefetcher.times())
                    result = run.validate(validator)
                except (FloatingPointError, FailingRun) as error:
                    run.roll_back(error)
                else:
                    run.after_epoch(result)
    finally:
        # Deleted now, because matplotlib's layout keeps this frame in a cycle of references, and
        # the garbage collector would wait five seconds (a time-out) for each worker.
        del prefetcher, validator


def _begin(run: Run, validator: Validator) -> None:
    """What comes before the first epoch: a picture of the input, the adversary's start, validation.

    Raises:
        Stopped: a signal in any process has asked for it.
    """
    settings, progress = run.settings, run.progress
    if run.team.is_first:
        volume = run.train_set.places[0][0]
        middle = sum(1 for place in run.train_set.places if place[0] == volume) // 2
        example = run.train_set[Draw(epoch=0, index=middle)]  # there is anatomy in the middle
        write_input_grid(run.output.folder / "grids" / "raw_grid.png", collate([example]))
    if run.is_new and run.players.adversary is not None and settings.adversary_pretrain_steps > 0:
        done = warm_up(
            run.players,
            run.train_set,
            run.device,
            run.team,
            steps=settings.adversary_pretrain_steps,
            slices=settings.adversary_pretrain_slices,
            reg_param=settings.reg_param,
            penalty_every=settings.penalty_every,
            clip_grad_norm=settings.clip_grad_norm,
        )
        if not done:
            run.stop()  # a continued run repeats the warm-up
    run.train_set.close()  # no file is open when the loaders fork
    if settings.stage == "train" and not progress.start and progress.epoch < settings.epochs:
        run.validate_initial(validator)
    run.safeguard.keep(None, validated=True)
