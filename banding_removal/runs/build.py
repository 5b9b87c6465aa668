"""The networks that settings describe, and the device that they are on."""

import re
from pathlib import Path

import torch
from torch import nn

from banding_removal.config.settings import Settings
from banding_removal.errors import ConfigError
from banding_removal.model import predictors
from banding_removal.model.classifiers import Ensemble, build_adversary
from banding_removal.processes.team import Team
from banding_removal.runs.checkpoint import Checkpoint
from banding_removal.runs.weights import load_weights

WIDE = 32  # channels of an adversary from which channels last is slower


def build_predictor(
    settings: Settings,
    device: torch.device,
    start: Checkpoint | None = None,
    start_path: Path | None = None,
) -> nn.Module:
    """The predictor that the settings describe, with weights from a checkpoint if one is given.

    It maps masked k-space, mask and numbers of centre lines to images, as `UnrolledNetwork.forward`
    does. Settings from a checkpoint must have been through `saved_settings`, since the module of a
    predictor package.module:Class is imported here.

    Args:
        settings: only those of the network are read.
        device: to put the predictor on.
        start: checkpoint with the weights.
        start_path: its path, for messages.

    Raises:
        CheckpointError: the weights do not fit; the differing keys are listed.
        ConfigError: the predictor cannot be imported or made.
    """
    sizes = {
        "cascades": settings.cascades,
        "chans": settings.chans,
        "pools": settings.pools,
        "sens_chans": settings.sens_chans,
        "sens_pools": settings.sens_pools,
        "sens_identity": settings.sens_identity,
        "dropout": settings.dropout,
    }
    try:
        predictor = predictors.build(settings.predictor, sizes, settings.predictor_kwargs)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if start is not None and start_path is not None:
        load_weights(predictor, start.predictor, start_path)
    return predictor.to(device)


def build_adversary_of(settings: Settings, device: torch.device) -> Ensemble | None:
    """The adversary that the settings describe; None where they have none."""
    if settings.adversary is None:
        return None
    adversary = build_adversary(
        settings.adversary, members=settings.adversary_members, chans=settings.adversary_chans
    )
    # On CPUs, channels last makes narrow adversaries several times faster. It makes the second
    # derivatives of the penalty a fifth slower for wide ones.
    chans = next(weight.shape[0] for weight in adversary.parameters() if weight.ndim == 4)
    if device.type == "cpu" and chans < WIDE:
        adversary.to(memory_format=torch.channels_last)
    return adversary.to(device)


def choose_device(name: str, team: Team | None = None) -> torch.device:
    """The device of that name; `auto` is the GPU if there is one, else the CPU.

    Each of several processes has a GPU of its own.

    Raises:
        ConfigError: this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d{1,4})?", name):
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:0, cuda:1, ...; got {name!r}")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name!r}: this machine has {torch.cuda.device_count()} GPUs")
    if device.type == "cuda" and team is not None and team.size > 1:
        return torch.device("cuda", torch.cuda.current_device())  # as chosen in `launch`
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # checkpoints store the random state of the current GPU
    return device
