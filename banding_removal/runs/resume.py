"""Where a run begins: a folder to go on in, weights to begin from, or nothing."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from banding_removal.config.settings import Settings, differences, from_plain, plain
from banding_removal.errors import CheckpointError, ConfigError, RunInUseError
from banding_removal.runs.checkpoint import (
    FOLDER,
    Checkpoint,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
)
from banding_removal.runs.folder import PATIENCE_S, RunLock, latest_run

log = logging.getLogger(__name__)

# Between runs that have the same data and mean the same thing, only these may differ unnoticed.
NOT_COMPARED = ("resume", "restart", "after", "epochs")
# What changes nothing in what a run computes: it goes on although these differ.
HOW_IT_RUNS = (
    *("resume", "device", "workers", "timeout_minutes"),
    *("log_every", "keep_checkpoints", "checkpoint_every"),
)


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run begins from; with neither, from nothing."""

    folder: Path | None = None  # to go on in, with everything; else a new one is made
    checkpoint: Path | None = None


def find_start(settings: Settings, lock: RunLock) -> Start:
    """Where these settings begin.

    That is: `resume`; else the newest run of this name, if it has the same settings and is not
    complete, so that the same command goes on with what was stopped, killed or failed; else a new
    run, from the weights of `restart`, or of the newest run called `after`, or from none.

    Args:
        settings: of the run.
        lock: takes the folder to go on in.

    Raises:
        CheckpointError: it is not there; for `after`, the message says how to make it. Or all
            checkpoints of the run to go on with are damaged.
        RunInUseError: the run to go on with is going on.
    """
    if settings.resume is not None:
        folder = _folder_of(find_checkpoint(settings.resume))
        lock.take(folder, PATIENCE_S)
        # Again: whoever had it may have gone on.
        path = find_checkpoint(settings.resume)
        _folder_of(path)
        return Start(folder=folder, checkpoint=path)
    unfinished = _unfinished(settings, lock)
    if unfinished is not None:
        return unfinished
    if settings.restart is not None:
        return Start(checkpoint=find_checkpoint(settings.restart))
    if settings.after is None:
        return Start()
    # A run that has made no step yet has nothing to begin from: epoch000.pt.
    before = latest_run(settings.logs, settings.after, containing=f"{FOLDER}/*[1-9]*.pt")
    if before is None:
        raise CheckpointError(
            f"no pretrained predictor: {settings.logs} holds no run called {settings.after} with a "
            f"checkpoint. Pretrain one first (ipython scripts/{settings.after}.py), or name one "
            f"with restart=..."
        )
    return Start(checkpoint=find_checkpoint(before))


def _unfinished(settings: Settings, lock: RunLock) -> Start | None:
    """The newest run of this name, if these settings go on with it."""
    found = _same_run(settings)
    if found is None or found[2] >= settings.epochs:
        return None
    try:
        lock.take(found[0], PATIENCE_S)
    except RunInUseError as error:
        raise RunInUseError(
            f"{error}: it runs with these very settings. Another name=... begins a second one"
        ) from error
    found = _same_run(settings)  # again: whoever had it may have gone on
    if found is None or found[2] >= settings.epochs:
        lock.release()
        return None
    folder, path, epoch = found
    log.info(
        "going on with %s, which has the same settings and ended within epoch %d of %d "
        "(another name=... begins anew)",
        *(folder, epoch + 1, settings.epochs),
    )
    return Start(folder=folder, checkpoint=path)


def completed_run(settings: Settings) -> Path | None:
    """The folder of the newest run of this name, if it is what these settings would make."""
    found = _same_run(settings)
    return found[0] if found is not None and found[2] >= settings.epochs else None


def _same_run(settings: Settings) -> tuple[Path, Path, int] | None:
    """Folder, newest checkpoint and epoch of the newest run of this name, if settings agree.

    Raises:
        CheckpointError: all of its checkpoints are damaged. Days of training are not begun anew
            without a word.
    """
    folder = latest_run(settings.logs, settings.name)
    if folder is None or not list_checkpoints(folder):
        return None
    try:
        path = find_checkpoint(folder)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}. To begin anew, move that folder away or choose another name=..."
        ) from error
    try:
        checkpoint = load_checkpoint(path)
    except CheckpointError as error:
        log.warning("a new run, since the one before cannot go on: %s", error)
        return None
    try:
        # Settings that are newer than the run had no other value than their defaults.
        saved = plain(from_plain(checkpoint.settings, path))
    except ConfigError as error:
        log.warning("a new run, since the one before cannot go on: %s", error)
        return None
    same = _comparable(saved) == _comparable(plain(settings))
    return (folder, path, checkpoint.epoch) if same else None


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in HOW_IT_RUNS}


def _folder_of(checkpoint: Path) -> Path:
    """The run's folder that a checkpoint lies in, for a resume."""
    path = checkpoint.resolve()
    if path.parent.name != FOLDER:
        raise CheckpointError(
            f"cannot resume from {checkpoint}: it does not lie in the {FOLDER} folder of a run. "
            f"Its weights can be used with restart={checkpoint}"
        )
    folder = path.parent.parent
    newest = find_checkpoint(folder)
    if path != newest:
        raise CheckpointError(
            f"cannot resume from {checkpoint}: its run has gone on to {newest.name} and "
            f"would be overwritten. Go on from there with resume={folder}, or begin a new run "
            f"from these weights with restart={checkpoint}"
        )
    return folder


def saved_settings(path: Path, checkpoint: Checkpoint) -> Settings:
    """The settings in a run's checkpoint, with `logs` where the run lies.

    It may have been moved, or be somebody else's: what belongs to it stays beside it.

    Raises:
        ConfigError: they are not of this version.
    """
    return replace(from_plain(checkpoint.settings, path), logs=path.resolve().parent.parent.parent)


def report_changes(start: Checkpoint, settings: Settings, volumes: dict[str, list[str]]) -> None:
    """Warn of settings and volumes that are not those of the checkpoint."""
    old, new = (
        {key: value for key, value in content.items() if key not in NOT_COMPARED}
        for content in (start.settings, plain(settings))
    )
    for change in differences(old, new):
        log.warning("setting changed since the checkpoint: %s", change)
    for part, names in volumes.items():
        was, now = set(start.volumes.get(part, [])), set(names)
        if was != now:
            log.warning(
                "other %s volumes than at the checkpoint: %d new, %d missing",
                *(part, len(now - was), len(was - now)),
            )
