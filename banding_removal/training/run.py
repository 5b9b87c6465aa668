"""A run: its state, and what happens between steps and epochs.

`Run` has one method for each thing that the loop does besides training: count and log a step, save,
stop at a signal, validate, complete an epoch, go back to the last good state.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from tqdm import tqdm

from banding_removal.config.overrides import plain
from banding_removal.config.settings import Settings
from banding_removal.data.batch import Batch
from banding_removal.data.dataset import SliceDataset
from banding_removal.errors import RunFailedError
from banding_removal.processes.signals import Stopped
from banding_removal.processes.team import Team
from banding_removal.runs.checkpoint import Checkpoint, random_state
from banding_removal.training.loading import Prefetcher
from banding_removal.training.output import RunOutput
from banding_removal.training.players import Players
from banding_removal.training.progress import Progress, SmoothedMetrics
from banding_removal.training.report import (
    epoch_line,
    history_row,
    peak_memory_gb,
    progress_text,
    validation_in_words,
)
from banding_removal.training.safeguard import (
    FailingRun,
    Safeguard,
    check_validation,
    settled,
    warn_if_at_chance,
)
from banding_removal.training.schedule import StepSettings, settings_of_step
from banding_removal.training.validation import ValidationResult, Validator

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Run:
    """What a training consists of."""

    settings: Settings
    device: torch.device
    team: Team
    train_set: SliceDataset
    val_set: SliceDataset
    players: Players
    progress: Progress
    safeguard: Safeguard
    output: RunOutput
    smoothed: SmoothedMetrics = field(default_factory=SmoothedMetrics)  # of the current epoch
    steps_in_epoch: int = 0

    # --- where the run is ---

    @property
    def is_new(self) -> bool:
        """Whether no step has been trained yet, and no rollback has happened."""
        return self.progress.step == 0 and not self.progress.events

    @property
    def volumes(self) -> dict[str, list[str]]:
        """File names of both data sets, to notice if a run is continued with other data."""
        sets = {"training": self.train_set, "validation": self.val_set}
        return {part: [volume.name for volume in data.volumes] for part, data in sets.items()}

    @property
    def backoff_factor(self) -> float:
        """Factor of the learning rates and of the weights against banding, after rollbacks."""
        return self.settings.rollback_factor ** len(self.progress.events)

    @property
    def steps_done(self) -> int:
        """Steps of the current epoch."""
        return self.progress.batches // self.batches_per_step

    @property
    def batches_per_step(self) -> int:
        """Batches (pairs) of all processes."""
        sharing = 2 if self.settings.splits_pairs(self.team.size) else 1
        return self.settings.accumulate * self.team.size // sharing

    def step_settings(self) -> StepSettings:
        """The settings of the next step."""
        return settings_of_step(
            self.settings,
            epochs=self.progress.epoch + self.steps_done / self.steps_in_epoch,
            step=self.progress.step + 1,
            backoff_factor=self.backoff_factor,
        )

    # --- what the loop calls ---

    def epochs_left(self) -> Iterator[int]:
        """Numbers of the epochs that are not complete; after a rollback, some come again."""
        while self.progress.epoch < self.settings.epochs:
            yield self.progress.epoch + 1

    def steps_left(self, prefetcher: Prefetcher) -> Iterator[Iterator[list[Batch]]]:
        """The groups of batches of each step that is left of the epoch, with a progress bar."""
        epoch = self.progress.epoch
        prefetcher.begin(epoch, self.progress.batches)
        self.smoothed = SmoothedMetrics()
        self.steps_in_epoch = self.steps_done + len(prefetcher)
        self.players.predictor.train()
        bar = tqdm(
            prefetcher,
            desc=f"epoch {epoch + 1}/{self.settings.epochs}",
            leave=False,
            mininterval=1,
            disable=not self.team.is_first,
        )
        for groups in bar:
            yield groups
            bar.set_postfix_str(progress_text(self.smoothed.values, self.device), refresh=False)

    def after_step(self, values: dict[str, float]) -> None:
        """Count and log a step; save if a checkpoint is due.

        Args:
            values: its metrics in this process.

        Raises:
            Stopped: a signal in any process has asked for it; the state is saved.
            FailingRun: the loss explodes.
        """
        settings, progress = self.settings, self.progress
        # One message per step: the metrics, and whether any process was asked to stop.
        values = self.team.mean({**values, "stop": float(self.team.stop.signal_name is not None)})
        asked_to_stop = values.pop("stop") > 0
        progress.add_step(values, self.batches_per_step)
        self.smoothed.add(values)
        self.safeguard.check_loss(self.smoothed.values["loss"], self.smoothed.steps)
        if progress.step % settings.log_every == 0:
            self.output.add_step(progress, values | self._running_values(values))
        if asked_to_stop:
            self.save_and_stop()
        if settings.checkpoint_every and progress.step % settings.checkpoint_every == 0:
            loss = self.smoothed.values["loss"]
            self.save(loss if settled(self.smoothed.steps) else None)

    def _running_values(self, values: dict[str, float]) -> dict[str, float]:
        """What a row of metrics contains in addition to those of its step."""
        # All epochs have the same number of steps.
        end_of_epoch = self.progress.step + self.steps_in_epoch - self.steps_done
        running = {
            "total_steps": end_of_epoch * self.settings.epochs / (self.progress.epoch + 1),
            "memory_gb": peak_memory_gb(self.device),
        }
        if "accuracy" in values:
            running["accuracy_running"] = self.smoothed.values["accuracy"]
        return running

    def validate(self, validator: Validator) -> ValidationResult | None:
        """Validate the predictor at the end of an epoch; None: this epoch has no validation.

        Raises:
            Stopped: a signal in any process has asked for it; the state before validation is saved.
            FailingRun: a reconstruction is not finite; or something other than banding changed, and
                the settings allow rollbacks.
        """
        settings, epoch = self.settings, self.progress.epoch + 1
        if epoch % settings.validate_every != 0 and epoch != settings.epochs:
            return None
        try:
            result = self._run_validator(validator)
        except FloatingPointError as error:
            raise FailingRun(str(error), in_validation=True) from error
        if self.progress.start:
            rate = self.players.learning_rates()["lr"] / settings.lr
            try:
                check_validation(self.progress.start, result.metrics, rate=rate)
            except FailingRun as error:
                if settings.rollbacks is not None:
                    raise
                log.warning("worse at step %d: %s (rollbacks=null)", self.progress.step, error)
        return result

    def validate_initial(self, validator: Validator) -> None:
        """Validate the predictor that stage 2 begins with, to compare later ones with it.

        Raises:
            Stopped: a signal in any process has asked for it; the state before validation is saved.
            FloatingPointError: a reconstruction is not finite.
        """
        result = self._run_validator(validator)
        self.progress.start.update(result.metrics)
        log.info("before stage 2: validation %s", validation_in_words(history_row(result)))
        self.output.add_initial(self.progress, result)

    def _run_validator(self, validator: Validator) -> ValidationResult:
        result = validator.run(self.players.predictor)
        if result is None:
            self.save_and_stop()
        return result

    def after_epoch(self, result: ValidationResult | None) -> None:
        """Complete an epoch: history, log, curves, grid, checkpoint.

        Args:
            result: its validation, if it has one.
        """
        progress, epoch = self.progress, self.progress.epoch + 1
        row = {
            "epoch": epoch,
            **self.players.learning_rates(),
            **progress.mean_metrics(),
            **({} if result is None else history_row(result)),
        }
        warn_if_at_chance(row)
        progress.add_epoch(row)
        log.info("%s", epoch_line(row, self.settings.epochs, self.device))
        self.output.add_epoch(progress, result)
        self.save(row["train_loss"], validated=result is not None)

    # --- failing ---

    def roll_back(self, error: FloatingPointError | FailingRun) -> None:
        """Go back to the last good (or validated) state; continue with lower rates and weights.

        Args:
            error: what shows that the run is failing.

        Raises:
            RunFailedError: there have been `rollbacks` rollbacks already.
        """
        settings, progress = self.settings, self.progress
        why = "; ".join(dict.fromkeys(self.team.gather(str(error))))
        failed_at, before = progress.step, len(progress.events)
        if settings.rollbacks is None or before >= settings.rollbacks:
            often = f"after {before} rollbacks" if before else "(no rollbacks)"
            raise RunFailedError(f"the run is failing {often}, at step {failed_at}: {why}")
        event = {"step": failed_at, "epoch": progress.epoch + 1, "why": why}
        events = [*progress.events, event]
        to_validated = isinstance(error, FailingRun) and error.in_validation
        self.safeguard.roll_back(to_validated=to_validated)
        event["back_to"] = progress.step
        progress.events = events
        log.warning(
            "the run is failing at step %d: %s. Rollback %d of %d, to step %d; from now on "
            "learning rates and weights against banding are multiplied by %g",
            *(failed_at, why, len(events), settings.rollbacks, progress.step),
            self.backoff_factor,
        )
        self._write_checkpoint()
        self.output.add_rollback(progress, failed_at)

    # --- saving and stopping ---

    def save(self, loss: float | None = None, *, validated: bool = False) -> None:
        """Write a checkpoint of the current state, and remember it as a good one.

        Args:
            loss: smoothed training loss; None: not known.
            validated: its validation found nothing wrong.
        """
        self._write_checkpoint()
        self.safeguard.keep(loss, validated=validated)

    def _write_checkpoint(self) -> None:
        state = self.players.state_dict()
        rng, replay = (self.team.gather(part) for part in (random_state(), state["replay"]))
        self.output.save(
            Checkpoint(
                **{**vars(self.progress), **state, "replay": replay},
                rng=rng,
                settings=plain(self.settings),
                volumes=self.volumes,
            )
        )

    def save_and_stop(self) -> NoReturn:
        """Save the current state and stop, as a signal has asked for.

        Raises:
            Stopped: always.
        """
        self.save()
        self.stop()

    def stop(self) -> NoReturn:
        """Stop, as a signal has asked for, without saving again.

        Raises:
            Stopped: always, in all processes, when all of them have arrived here.
        """
        names = self.team.gather(self.team.stop.signal_name)
        raise Stopped(next(name for name in names if name is not None), self.progress.step)
