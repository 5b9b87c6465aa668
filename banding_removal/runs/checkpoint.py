"""Checkpoints: written whole or not at all, read as data and never as code."""

import io
import logging
import re
import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor

from banding_removal.errors import CheckpointError
from banding_removal.files import atomic_write
from banding_removal.runs.folder import in_latest
from banding_removal.runs.public_weights import weights_in
from banding_removal.runs.safe_load import RefusedError, fits, load_plain

log = logging.getLogger(__name__)

FORMAT = 3
FOLDER = "checkpoints"
_NAME = re.compile(r"epoch(\d+)(?:_step(\d+))?\.pt")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """State of a run after `epoch` whole epochs and `batches` batches of the next one.

    All fields hold tensors and plain data only.
    """

    epoch: int
    step: int
    batches: int  # of all processes
    sums: dict[str, float]  # of each metric, over the steps of the unfinished epoch
    predictor: dict[str, Any]
    optimizer: dict[str, Any]
    adversary: dict[str, Any] | None  # None without an adversary, like its optimiser
    adversary_optimizer: dict[str, Any] | None
    rng: list[dict[str, Any]]  # of each process
    history: list[dict[str, Any]]
    start: dict[str, float]  # validation metrics of the predictor that stage 2 began with
    events: list[dict[str, Any]]  # rollbacks so far
    settings: dict[str, Any]
    volumes: dict[str, list[str]]  # names of the training and of the validation volumes
    # Earlier reconstructions that the adversary sees again, of each process.
    replay: list[list[Tensor]] = field(default_factory=list)

    @classmethod
    def of_weights(cls, weights: dict[str, Tensor]) -> "Checkpoint":
        """Weights alone: `settings` is empty."""
        return cls(
            epoch=0,
            step=0,
            batches=0,
            sums={},
            predictor=weights,
            optimizer={},
            adversary=None,
            adversary_optimizer=None,
            rng=[],
            history=[],
            start={},
            events=[],
            settings={},
            volumes={},
        )


def random_state() -> dict[str, Any]:
    """State of torch's global generators; no other global generator is used."""
    # Only of the current GPU: the others belong to other processes.
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def restore_random_state(state: dict[str, Any]) -> None:
    """Set the state of torch's global generators, and that of the GPU if the state has one.

    Raises:
        CheckpointError: it is not such a state.
    """
    try:
        torch.set_rng_state(state["torch"])
        if torch.cuda.is_initialized() and state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"])
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint's random state is invalid: {error!r}") from error


def save_checkpoint(run_folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write <run>/checkpoints/epochNNN.pt, or epochNNN_stepMMM.pt within an epoch.

    Then delete those that are no longer needed: all that are further on (left by a run that was
    rolled back), those within an epoch, and those after whole epochs except the newest `keep` (0
    keeps all). The newest two remain in any case, since one of them may be damaged later.

    Raises:
        CheckpointError: it could not be written; earlier checkpoints are intact.
    """
    folder = run_folder / FOLDER
    within = f"_step{checkpoint.step:06d}" if checkpoint.batches else ""
    path = folder / f"epoch{checkpoint.epoch:03d}{within}.pt"
    # Into memory first: torch's own file writer turns a full disk into an unspecific RuntimeError.
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **vars(checkpoint)}, buffer)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(path, buffer.getbuffer())
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error}. Earlier checkpoints are intact; make room and resume."
        ) from error
    _delete_surplus(list_checkpoints(run_folder), path, keep)
    return path


def _delete_surplus(found: list[Path], newest: Path, keep: int) -> None:
    """Delete checkpoints as `save_checkpoint` says; `found` has them all, oldest first."""
    here = found.index(newest)
    after_epochs = [path for path in found[: here + 1] if "_step" not in path.name]
    kept = {*found[max(0, here - 1) : here + 1], *(after_epochs[-keep:] if keep else after_epochs)}
    for path in found:
        if path not in kept:
            path.unlink()


def list_checkpoints(run_folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    found = [
        ((int(m[1]), int(m[2] or 0)), p)
        for p in run_folder.glob(f"{FOLDER}/*.pt")
        if (m := _NAME.fullmatch(p.name))
    ]
    return [path for _, path in sorted(found)]


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a path names: the file, or the newest intact one of a run's folder.

    Raises:
        CheckpointError: there is none, or all are damaged.
    """
    path = in_latest(path)
    return path if path.is_file() else newest_intact(path)[0]


def open_checkpoint(path: Path) -> tuple[Path, Checkpoint]:
    """The checkpoint that a path names, as in `find_checkpoint`, and its content; it is read once.

    Raises:
        CheckpointError: as in `find_checkpoint` and `load_checkpoint`.
    """
    path = in_latest(path)
    if path.is_file():
        return path, load_checkpoint(path)
    path, content = newest_intact(path)
    return path, as_checkpoint(content, path)


def newest_intact(folder: Path) -> tuple[Path, Any]:
    """The newest checkpoint of a run that is not damaged: its path, and what `as_checkpoint` takes.

    Raises:
        CheckpointError: there is none, or all are damaged.
    """
    found = list_checkpoints(folder)
    if not found:
        state = f"holds no {FOLDER}/epochNNN.pt" if folder.is_dir() else "does not exist"
        raise CheckpointError(f"no checkpoint: {folder} {state}")
    errors = []
    for path in reversed(found):
        try:
            return path, _load(path)
        except CheckpointError as error:
            log.warning("%s. Trying the checkpoint before it", error)
            errors.append(error)
    raise CheckpointError(f"all {len(found)} checkpoints of {folder} are damaged: {errors[0]}")


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, on the CPU. Only tensors and plain data are read; no code in it is run.

    Raises:
        CheckpointError: it is damaged, holds Python objects, or is refused by `as_checkpoint`.
    """
    return as_checkpoint(_load(path), path)


def as_checkpoint(content: Any, path: Path) -> Checkpoint:
    """The checkpoint that a file holds.

    A file of weights alone, as other software saves it, is a checkpoint without settings.

    Args:
        content: plain data, as read from the file.
        path: the file, for messages.

    Raises:
        CheckpointError: it is neither a checkpoint of this project nor a state dict.
    """
    if isinstance(content, dict) and "format" not in content:
        weights = weights_in(content)
        if weights is not None:
            return Checkpoint.of_weights(weights)
    hints = get_type_hints(Checkpoint)
    if not isinstance(content, dict) or "format" not in content:
        holds = (
            ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        )
        raise CheckpointError(
            f"{path} is not a checkpoint of this project. Files of other software can be state "
            "dicts (name: tensor), or have one as their entry state_dict; this one holds: "
            f"{reprlib.repr(holds)}"
        )
    if content.pop("format") != FORMAT or set(content) != set(hints):
        raise CheckpointError(f"{path} is not a checkpoint of this version of the project")
    wrong = [key for key, hint in hints.items() if not fits(content[key], hint)]
    if wrong:
        raise CheckpointError(f"{path} is refused: wrong type of {', '.join(wrong)}")
    return Checkpoint(**content)


def _load(path: Path) -> Any:
    """Whatever plain data a file holds."""
    try:
        return load_plain(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except RefusedError as error:
        raise CheckpointError(f"{path} {error}") from error
