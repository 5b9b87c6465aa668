"""Checkpoints: written whole or not at all, read as data and never as code."""

import hashlib
import io
import logging
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from banding_removal.errors import CheckpointError
from banding_removal.files import atomic_write
from banding_removal.runs.safe_load import RefusedError, fits, load_plain

log = logging.getLogger(__name__)

FORMAT = 3
SEAL = b"sha256:"
DIGEST = 64  # characters
FOLDER = "checkpoints"
_NAME = re.compile(r"epoch(\d+)(?:_step(\d+))?\.pt")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """State of a run after `epoch` epochs and, within the next one, `batches` batches.

    Plain data and tensors throughout.
    """

    epoch: int
    step: int
    batches: int  # of all processes
    sums: dict[str, float]  # of the figures of the steps of the epoch begun
    predictor: dict[str, Any]
    optimizer: dict[str, Any]
    adversary: dict[str, Any] | None  # None in stage 1, like its optimiser
    adversary_optimizer: dict[str, Any] | None
    rng: list[dict[str, Any]]  # of each process
    history: list[dict[str, Any]]
    start: dict[str, float]  # validation of the predictor that stage 2 began with
    events: list[dict[str, Any]]  # rollbacks so far
    settings: dict[str, Any]
    volumes: dict[str, list[str]]  # names of the training and of the validation volumes
    # Reconstructions that the adversary sees again, of each process.
    replay: list[list[Tensor]] = field(default_factory=list)


def random_state() -> dict[str, Any]:
    """State of torch's generators. Nothing else draws from a global generator."""
    # Of the current GPU alone: the others are other processes'.
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def restore_random_state(state: dict[str, Any]) -> None:
    """Set torch's generators; a GPU's only if the state has one.

    Raises:
        CheckpointError: it is no such state.
    """
    try:
        torch.set_rng_state(state["torch"])
        if torch.cuda.is_initialized() and state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"])
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint's random state is none: {error!r}") from error


def save_checkpoint(run_folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write <run>/checkpoints/epochNNN.pt, or epochNNN_stepMMM.pt within an epoch.

    Then remove those that are further on, which a run that went back has left, and of the others
    all but the newest `keep` of those after whole epochs (0: none), and all of those within an
    epoch; but never the newest two of all.

    Raises:
        CheckpointError: it could not be written; earlier checkpoints are intact.
    """
    folder = run_folder / FOLDER
    within = f"_step{checkpoint.step:06d}" if checkpoint.batches else ""
    path = folder / f"epoch{checkpoint.epoch:03d}{within}.pt"
    # Through memory: torch's own file writer turns a full disk into an unspecific RuntimeError.
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **vars(checkpoint)}, buffer)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(path, seal(buffer.getvalue()))
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error}. Earlier checkpoints are intact; make room and resume."
        ) from error
    found = list_checkpoints(run_folder)
    for later in found[found.index(path) + 1 :]:
        later.unlink()
    found = found[: found.index(path) + 1]
    # The newest two stay in any case: one may be damaged later.
    whole = [old for old in found if "_step" not in old.name]
    surplus = whole[:-keep] if keep else []
    for old in found[:-2]:
        if "_step" in old.name or old in surplus:
            old.unlink()
    return path


def seal(archive: bytes) -> bytes:
    """A zip archive without a comment, with the digest of all its bytes as its comment.

    The digest covers everything before it. PyTorch reads such files as any others, and does not
    look at the archive's own checksums.
    """
    size = struct.pack("<H", len(SEAL) + DIGEST)
    content = archive[: -len(size)] + size  # the length of the comment is the last field
    return content + SEAL + hashlib.sha256(content).hexdigest().encode()


def _is_sound(content: bytes) -> bool:
    """Whether what `seal` made is as it was."""
    body, seal, digest = (
        content[: -DIGEST - len(SEAL)],
        content[-DIGEST - len(SEAL) : -DIGEST],
        (content[-DIGEST:]),
    )
    return seal == SEAL and hashlib.sha256(body).hexdigest().encode() == digest


def list_checkpoints(run_folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    found = [
        ((int(m[1]), int(m[2] or 0)), p)
        for p in run_folder.glob(f"{FOLDER}/*.pt")
        if (m := _NAME.fullmatch(p.name))
    ]
    return [path for _, path in sorted(found)]


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a path names: the file itself, or the newest sound one of a run's folder.

    Raises:
        CheckpointError: there is none, or all are damaged.
    """
    if path.is_file():
        return path
    found = list_checkpoints(path)
    if not found:
        state = f"holds no {FOLDER}/epochNNN.pt" if path.is_dir() else "does not exist"
        raise CheckpointError(f"no checkpoint: {path} {state}")
    for number, candidate in enumerate(reversed(found), start=1):
        try:
            if _is_sound(candidate.read_bytes()):
                return candidate
            why = "is not what was written"
        except OSError as error:
            why = str(error)
        before = "the one before is taken" if number < len(found) else "it was the last"
        log.warning("%s is damaged (%s): %s", candidate, why, before)
    raise CheckpointError(
        f"all {len(found)} checkpoints of {path} are damaged, the newest {found[-1]}"
    )


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, on the CPU. Tensors and plain data only: nothing in it is executed.

    Raises:
        CheckpointError: damaged, not a checkpoint of this project, or holding Python objects.
    """
    try:
        stored = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    sealed = stored[-DIGEST - len(SEAL) : -DIGEST] == SEAL
    if sealed and not _is_sound(stored):
        raise CheckpointError(f"{path} is damaged: its checksum is that of other content")
    try:
        content = load_plain(stored)
    except RefusedError as error:
        raise CheckpointError(f"{path} is refused: {error}") from error
    hints = get_type_hints(Checkpoint)
    if (
        not isinstance(content, dict)
        or content.pop("format", None) != FORMAT
        or set(content) != set(hints)
    ):
        raise CheckpointError(f"{path} is not a checkpoint of this version of the project")
    if not sealed:
        raise CheckpointError(f"{path} is damaged: it has no checksum")
    wrong = [key for key, hint in hints.items() if not fits(content[key], hint)]
    if wrong:
        raise CheckpointError(f"{path} is refused: {', '.join(wrong)} are not what they should be")
    return Checkpoint(**content)


def load_weights(model: nn.Module, weights: dict[str, Any], path: Path) -> None:
    """Load a state dict, all of it.

    Raises:
        CheckpointError: keys or shapes differ; they are listed.
    """
    own = model.state_dict()
    problems = [f"  {key}: only in the model" for key in own if key not in weights]
    problems += [f"  {key}: only in the checkpoint" for key in weights if key not in own]
    problems += [
        f"  {key}: {_kind(weights[key])} in the checkpoint, {_kind(value)} in the model"
        for key, value in own.items()
        if key in weights and _kind(weights[key]) != _kind(value)
    ]
    if problems:
        raise CheckpointError(
            f"{path} does not fit the model (check cascades, chans, pools, sens_chans); "
            f"{len(problems)} difference(s):\n" + "\n".join(problems)
        )
    model.load_state_dict(weights)


def _kind(value: Any) -> str:
    """Type and shape."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{value.dtype} {tuple(value.shape)}".removeprefix("torch.")


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], path: Path) -> None:
    """Load an optimiser's state.

    Raises:
        CheckpointError: it is not of these parameters.
    """
    try:
        optimizer.load_state_dict(state)
        misfits = [
            f"{_kind(item)} for {_kind(parameter)}"
            for parameter, of_parameter in optimizer.state.items()
            for item in of_parameter.values()
            if not isinstance(item, Tensor) or item.shape not in (parameter.shape, ())
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: the optimiser's state does not fit: {error!r}") from error
    if misfits:
        raise CheckpointError(f"{path}: the optimiser's state does not fit: {misfits[0]}")
