"""A run: what it consists of, how it is saved, stopped, and taken back when it fails."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from banding_removal.config.overrides import plain
from banding_removal.config.settings import Settings
from banding_removal.data.dataset import SliceDataset
from banding_removal.errors import RunFailedError
from banding_removal.processes.signals import Stopped
from banding_removal.processes.team import Team
from banding_removal.runs.checkpoint import Checkpoint, random_state, save_checkpoint
from banding_removal.runs.folder import RunLock, show_as_latest
from banding_removal.runs.log import MetricsWriter
from banding_removal.training.safeguard import FailingError, Safeguard
from banding_removal.training.step import Players

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Progress:
    """How far a run has come: whole epochs, and batches of the epoch that is going on."""

    epoch: int = 0
    step: int = 0
    batches: int = 0  # of all processes, each counted once with its transposed counterpart
    sums: dict[str, float] = field(default_factory=dict)  # of the figures of this epoch's steps
    history: list[dict[str, Any]] = field(default_factory=list)  # one row an epoch
    start: dict[str, float] = field(default_factory=dict)  # stage 2: validation before it
    events: list[dict[str, Any]] = field(default_factory=list)  # rollbacks


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a training consists of."""

    settings: Settings
    folder: Path
    lock: RunLock  # on the folder, in the first process
    device: torch.device
    team: Team
    train_set: SliceDataset
    val_set: SliceDataset
    players: Players
    progress: Progress
    safeguard: Safeguard

    @property
    def volumes(self) -> dict[str, list[str]]:
        """File names of both data sets, to notice other data at a resume."""
        sets = {"training": self.train_set, "validation": self.val_set}
        return {part: [volume.name for volume in data.volumes] for part, data in sets.items()}


def roll_back(
    run: Run,
    error: FloatingPointError | FailingError,
    metrics: MetricsWriter | None,
    *,
    to_validated: bool = False,
) -> MetricsWriter | None:
    """Go back to the last good state, or to the last validated one, and on more gently.

    Returns:
        The writer of metrics, which has dropped what is undone.

    Raises:
        RunFailedError: it has happened too often.
    """
    settings, progress = run.settings, run.progress
    words = [str(error)] if isinstance(error, FailingError) else run.team.gather(str(error))
    why = "; ".join(dict.fromkeys(words))
    failed_at = progress.step
    if len(progress.events) >= settings.rollbacks:
        often = f"after {len(progress.events)} rollbacks" if progress.events else "(rollbacks=0)"
        raise RunFailedError(f"the run is failing {often}, at step {failed_at}: {why}")
    event = {"step": failed_at, "epoch": progress.epoch + 1, "why": why}
    events = [*progress.events, event]
    for key, value in run.safeguard.roll_back(to_validated=to_validated).items():
        setattr(progress, key, value)
    event["back_to"] = progress.step
    progress.events = events
    soften(run)
    log.warning(
        "the run is failing at step %d: %s. Rollback %d of %d, to step %d; from now on learning "
        "rates and weights against banding times %g",
        *(failed_at, why, len(events), settings.rollbacks, progress.step, run.players.softened),
    )
    _write_checkpoint(run)
    if metrics is None:
        return None
    metrics.close()
    metrics = MetricsWriter(run.folder, after=progress.step)
    values = {"failed_at": float(failed_at), "rollbacks": float(len(events))}
    metrics.write("rollback", step=progress.step, epoch=progress.epoch + 1, values=values)
    return metrics


def soften(run: Run) -> None:
    """Set the factor that goes with the rollbacks so far."""
    run.players.softened = run.settings.rollback_factor ** len(run.progress.events)


def save(run: Run, loss: float | None = None, *, validated: bool = False) -> None:
    """Write a checkpoint of where the run is, and remember it as a good state.

    Args:
        run: as it is.
        loss: running mean of its training loss; None: not known.
        validated: a validation found nothing wrong with it.
    """
    _write_checkpoint(run)
    run.safeguard.keep(vars(run.progress), loss, validated=validated)


def _write_checkpoint(run: Run) -> None:
    rng = run.team.gather(random_state())
    kept = run.players.replay
    replay = run.team.gather([] if kept is None else [*kept.pairs])
    if run.team.is_first:
        keep_folder(run)
        checkpoint = make_checkpoint(run, rng, replay)
        save_checkpoint(run.folder, checkpoint, run.settings.keep_checkpoints)


def keep_folder(run: Run) -> None:
    """Make the run's folder again, should somebody have removed or moved it.

    Raises:
        RunInUseError: another run has begun there.
    """
    if run.lock.renew(run.folder):
        show_as_latest(run.folder)
        log.warning(
            "%s was removed or moved: it is made again at step %d, without what was in it, and "
            "the run goes on",
            *(run.folder, run.progress.step),
        )


def stop(run: Run) -> NoReturn:
    """Save and end.

    Raises:
        Stopped: always.
    """
    save(run)
    end(run)


def end(run: Run) -> NoReturn:
    """End at a request, with what is saved.

    Raises:
        Stopped: always.
    """
    names = run.team.gather(run.team.stop.signal_name)  # none leaves before the state is saved
    raise Stopped(next(name for name in names if name is not None), run.progress.step)


def make_checkpoint(run: Run, rng: list[dict[str, Any]], replay: list[list[Tensor]]) -> Checkpoint:
    """The state of the run as plain data; `rng` and `replay` have that of each process."""
    players = run.players
    optimizer, adversary = players.adversary_optimizer, players.adversary
    return Checkpoint(
        **vars(run.progress),
        predictor=players.predictor.state_dict(),
        optimizer=players.optimizer.state_dict(),
        adversary=None if adversary is None else adversary.state_dict(),
        adversary_optimizer=None if optimizer is None else optimizer.state_dict(),
        rng=rng,
        settings=plain(run.settings),
        volumes=run.volumes,
        replay=replay,
    )
