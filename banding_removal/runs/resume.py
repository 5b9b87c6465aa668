"""What a run begins from: a run to continue, weights, or nothing; decided once, in one place."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from banding_removal.config.overrides import differences, from_plain, plain
from banding_removal.config.renames import with_new_names
from banding_removal.config.settings import Settings
from banding_removal.errors import CheckpointError, ConfigError, RunInUseError
from banding_removal.model.predictors import is_elsewhere
from banding_removal.runs.checkpoint import (
    FOLDER,
    Checkpoint,
    as_checkpoint,
    list_checkpoints,
    load_checkpoint,
    newest_intact,
    open_checkpoint,
)
from banding_removal.runs.folder import in_latest, latest_run
from banding_removal.runs.lock import PATIENCE_S, RunLock
from banding_removal.runs.public_weights import NETWORK_SETTINGS, public_settings

log = logging.getLogger(__name__)

# Not reported as changed: these may differ between runs that mean the same thing.
UNREPORTED = ("resume", "init_from", "recipe", "epochs")
# Without effect on the numbers of a run, which goes on although these differ. A recipe is compared
# by the settings that it sets.
WITHOUT_EFFECT = (
    *("resume", "recipe", "device", "workers", "timeout_minutes", "recompute"),
    *("log_every", "keep_checkpoints", "checkpoint_every"),
)


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run begins from; without a checkpoint, from random weights."""

    folder: Path | None = None  # of the run to continue; None: a new folder is made
    path: Path | None = None  # of the checkpoint
    checkpoint: Checkpoint | None = None
    everything: bool = False  # restored from the checkpoint; otherwise only the predictor's weights


def decide_start(settings: Settings, lock: RunLock) -> Start:
    """What these settings begin from; the checkpoint is read here, once.

    1. The run that `resume` names.
    2. The newest run called `name`, if it has the same settings and epochs are left: the same
       command continues a run that was stopped, killed or failed.
    3. A new run, from the weights that `init_from` names, or from random ones.

    Args:
        settings: `resume`, `name`, `init_from`, and all that two runs are compared by.
        lock: takes the folder of the run to continue.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
        RunInUseError: another process is writing to the run to continue.
    """
    if settings.resume is not None:
        return _resumed(settings.resume, lock)
    unfinished = _unfinished(settings, lock)
    if unfinished is not None:
        return unfinished
    if settings.init_from is None:
        return Start()
    path, checkpoint = open_checkpoint(_initial_run(settings.init_from, settings.logs))
    return Start(path=path, checkpoint=checkpoint)


def completed_run(settings: Settings) -> Path | None:
    """The folder of the newest run called `name`, if these settings made it and it is complete."""
    folder = latest_run(settings.logs, settings.name)
    found = None if folder is None else _same_run(folder, settings)
    return folder if found is not None and not _epochs_left(found, settings) else None


def _resumed(resume: Path, lock: RunLock) -> Start:
    path = in_latest(resume).resolve()
    folder = path.parent.parent if path.is_file() else path
    if path.is_file() and path.parent.name != FOLDER:
        raise CheckpointError(
            f"cannot resume from {resume}: it does not lie in the {FOLDER} folder of a run. "
            f"Its weights can be used with init_from={resume}"
        )
    if list_checkpoints(folder):
        lock.take(folder, PATIENCE_S)
    newest, content = newest_intact(folder)  # after the process that had the lock has written it
    if path not in (folder, newest):
        raise CheckpointError(
            f"cannot resume from {resume}: its run has gone on to {newest.name}, which "
            f"would be overwritten. Continue from there with resume={folder}, or start a new "
            f"run from these weights with init_from={resume}"
        )
    checkpoint = as_checkpoint(content, newest)
    return Start(folder=folder, path=newest, checkpoint=checkpoint, everything=True)


def _unfinished(settings: Settings, lock: RunLock) -> Start | None:
    """The newest run called `name`, if these settings continue it."""
    folder = latest_run(settings.logs, settings.name)
    if folder is None or not list_checkpoints(folder):
        return None
    written = (folder / FOLDER).stat().st_mtime_ns
    found = _same_run(folder, settings)
    if found is None or not _epochs_left(found, settings):
        return None
    try:
        lock.take(folder, PATIENCE_S)
    except RunInUseError as error:
        raise RunInUseError(
            f"{error}. It has the same settings; choose another name=... to start a second run"
        ) from error
    if (folder / FOLDER).stat().st_mtime_ns != written:  # by the process that had the lock
        found = _same_run(folder, settings)
    if found is None or found.checkpoint is None or not _epochs_left(found, settings):
        lock.release()
        return None
    log.info(
        "continuing %s, which has the same settings and stopped in epoch %d of %d "
        "(choose another name=... to start a new run)",
        *(folder, found.checkpoint.epoch + 1, settings.epochs),
    )
    return found


def _epochs_left(start: Start, settings: Settings) -> bool:
    return start.checkpoint is not None and start.checkpoint.epoch < settings.epochs


def _same_run(folder: Path, settings: Settings) -> Start | None:
    """A run and its newest checkpoint, if its settings are these.

    Raises:
        CheckpointError: all of its checkpoints are damaged. Days of training must not be repeated
            unnoticed.
    """
    if not list_checkpoints(folder):
        return None
    try:
        path, content = newest_intact(folder)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}. To start a new run, move that folder away or choose another name=..."
        ) from error
    try:
        checkpoint = as_checkpoint(content, path)
        # Settings that are newer than the run get their defaults, which it was trained with.
        saved = plain(from_plain(checkpoint.settings, path))
    except (CheckpointError, ConfigError) as error:
        log.warning("starting a new run, because the previous one cannot be continued: %s", error)
        return None
    if _comparable(saved) != _comparable(plain(settings)):
        return None
    return Start(folder=folder, path=path, checkpoint=checkpoint, everything=True)


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in settings.items() if key not in WITHOUT_EFFECT}
    if kept.pop("split_pairs") and kept["nproc"] is not None:
        kept["nproc"] //= 2  # two processes that share a pair take the steps of one
    if kept["init_from"] is not None:
        kept["init_from"] = str(Path(kept["init_from"]))  # logs/pretrain/ is logs/pretrain
    return kept


def _is_path(init_from: str) -> bool:
    return "/" in init_from or init_from.endswith(".pt")


def _initial_run(init_from: str, logs: Path) -> Path:
    """The run's folder, or the checkpoint, whose weights a new run begins from.

    Args:
        init_from: a path, if it has a slash in it or ends in .pt, or the plain name of a run.
        logs: where runs of that name are looked for.

    Raises:
        CheckpointError: no run of that name has a checkpoint.
    """
    if _is_path(init_from):
        return Path(init_from)
    # epoch000.pt has no training in it.
    newest = latest_run(logs, init_from, containing=f"{FOLDER}/*[1-9]*.pt")
    if newest is None:
        raise CheckpointError(
            f"no pretrained predictor: {logs} holds no run called {init_from} with a checkpoint. "
            f"Pretrain one first (ipython scripts/{init_from}.py), or name another run or a path "
            f"with init_from=..."
        )
    return newest


def with_public_network(settings: Settings) -> Settings:
    """The settings; if `init_from` names weights alone, with the network that they are of.

    Raises:
        CheckpointError: they cannot be read, or fit no known network.
    """
    if settings.init_from is None or is_elsewhere(settings.predictor):
        return settings
    path = Path(settings.init_from)
    if not _is_path(settings.init_from) or not path.is_file():
        return settings
    checkpoint = load_checkpoint(path)
    if checkpoint.settings:
        return settings
    found = public_settings(checkpoint.predictor, path)
    return replace(settings, **{key: getattr(found, key) for key in NETWORK_SETTINGS})


def report_changes(
    checkpoint: Checkpoint, settings: Settings, volumes: dict[str, list[str]]
) -> None:
    """Warn of settings and volumes that are not those of the checkpoint.

    Args:
        checkpoint: from which a run continues.
        settings: with which it continues.
        volumes: file names of both data sets, as in `Checkpoint.volumes`.
    """
    before = {**plain(Settings()), **with_new_names(checkpoint.settings)}
    for change in differences(before, plain(settings)):
        if change.partition(":")[0] not in UNREPORTED:
            log.warning("setting changed since the checkpoint: %s", change)
    for part, names in volumes.items():
        old, new = set(checkpoint.volumes.get(part, [])), set(names)
        if old != new:
            log.warning(
                "the %s volumes are not those of the checkpoint: %d new, %d missing",
                *(part, len(new - old), len(old - new)),
            )
