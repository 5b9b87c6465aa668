"""What a run writes while it trains: metrics, curves and grids, the run page, checkpoints."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from banding_removal.config.settings import Settings
from banding_removal.pictures.run_page import PageWriter
from banding_removal.processes.signals import Doing
from banding_removal.processes.team import Team
from banding_removal.runs.checkpoint import Checkpoint, save_checkpoint
from banding_removal.runs.folder import show_as_latest
from banding_removal.runs.lock import RunLock
from banding_removal.runs.metrics_file import MetricsWriter
from banding_removal.training.progress import Progress
from banding_removal.training.report import write_pictures
from banding_removal.training.validation import ValidationResult

log = logging.getLogger(__name__)


class RunOutput:
    """Writes the files in a run's folder. In all processes but the first, its methods do nothing.

    Args:
        folder: where everything is written.
        lock: held on the folder; tells whether somebody has removed it.
        settings: shown in pictures; they say which grids are drawn and which checkpoints are kept.
        team: the processes that train together.
    """

    def __init__(self, folder: Path, lock: RunLock, settings: Settings, team: Team) -> None:
        self.folder = folder
        self._lock = lock
        self._settings = settings
        self._team = team
        self._page = PageWriter(folder, settings)
        self._metrics: MetricsWriter | None = None  # in the first process, while `recording`

    @contextmanager
    def recording(self, step: int) -> Iterator[None]:
        """Keep the metrics files open; rows after `step` are dropped, since they will be repeated.

        The other methods, except for `save` and `close`, are called in this context.
        """
        if self._team.is_first:
            self._metrics = MetricsWriter(self.folder, after=step)
        try:
            yield
        finally:
            if self._metrics is not None:
                self._metrics.close()

    def add_step(self, progress: Progress, values: Mapping[str, float]) -> None:
        """Add a row of metrics for the step that `progress` has just counted."""
        if self._metrics is not None:
            epoch = progress.epoch + 1
            self._metrics.write("train", step=progress.step, epoch=epoch, values=values)

    def add_initial(self, progress: Progress, result: ValidationResult) -> None:
        """Show the validation before stage 2 on the run page."""
        if self._metrics is not None:
            self._page.add_epoch(0, result.display, progress.history, progress.start)

    def add_epoch(self, progress: Progress, result: ValidationResult | None) -> None:
        """Write metrics, curves, grid and run page of the epoch that was completed last.

        Args:
            progress: with this epoch in its history.
            result: the epoch's validation, if it has one.
        """
        if self._metrics is None:
            return
        step, epoch = progress.step, progress.epoch
        self._ensure_folder(step)
        if result is not None:
            self._metrics.write("val", step=step, epoch=epoch, values=result.metrics)
        write_pictures(self.folder, self._settings, progress.history, result)
        if result is not None:
            self._page.add_epoch(epoch, result.display, progress.history, progress.start)

    def add_rollback(self, progress: Progress, failed_at: int) -> None:
        """Drop the metrics of the steps that a rollback has undone, and add a row about it.

        Args:
            progress: after the rollback.
            failed_at: step before it.
        """
        if self._metrics is None:
            return
        self._metrics.close()
        self._metrics = MetricsWriter(self.folder, after=progress.step)
        values = {"failed_at": float(failed_at), "rollbacks": float(len(progress.events))}
        self._metrics.write("rollback", step=progress.step, epoch=progress.epoch + 1, values=values)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint.

        Raises:
            CheckpointError: it cannot be written.
            RunInUseError: the folder was removed, and another run has begun in a new one.
        """
        if self._team.is_first:
            self._ensure_folder(checkpoint.step)
            with self._team.stop.while_doing(Doing.SAVING):
                save_checkpoint(self.folder, checkpoint, self._settings.keep_checkpoints)

    def close(self, progress: Progress) -> None:
        """Write the run page once more, with how the run has ended."""
        if self._lock.held:  # not in other processes, nor if another run has taken the folder
            self._page.write(progress.history, progress.start)

    def _ensure_folder(self, step: int) -> None:
        """Make the run's folder again if somebody has removed or moved it."""
        if self._lock.renew(self.folder):
            show_as_latest(self.folder)
            log.warning(
                "%s was removed or moved. The run continues at step %d in a new folder of that "
                "name, without the earlier files",
                *(self.folder, step),
            )
