"""A trained predictor: from a path to a network with its weights, and the settings it came with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from banding_removal.config.overrides import from_plain
from banding_removal.config.settings import Settings
from banding_removal.errors import ConfigError
from banding_removal.model.predictors import is_elsewhere
from banding_removal.runs.build import build_predictor
from banding_removal.runs.checkpoint import Checkpoint, load_checkpoint
from banding_removal.runs.public_weights import public_settings


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A predictor and where it comes from."""

    path: Path  # of the checkpoint
    checkpoint: Checkpoint
    settings: Settings
    predictor: nn.Module


def load_trained(path: Path, device: torch.device, named: Sequence[str] = ()) -> Trained:
    """Load the predictor of a checkpoint.

    Args:
        path: of a checkpoint (see `find_checkpoint`), or of public weights.
        device: to put the predictor on.
        named: predictors package.module:Class that the user names; others are not imported.

    Raises:
        CheckpointError: the file is damaged, or its weights are of another network.
        ConfigError: its predictor is other code that `named` does not have.
    """
    checkpoint = load_checkpoint(path)
    settings = saved_settings(path, checkpoint, named)
    predictor = build_predictor(settings, device, checkpoint, path)
    return Trained(path=path, checkpoint=checkpoint, settings=settings, predictor=predictor)


def saved_settings(path: Path, checkpoint: Checkpoint, named: Sequence[str] = ()) -> Settings:
    """The settings in a run's checkpoint, with `logs` where the run lies now.

    The run may have been moved, or come from somebody else; its files are still in its folder. For
    weights alone, the settings are those of the public network that they fit.

    Args:
        path: the checkpoint file, <logs>/<run>/checkpoints/*.pt.
        checkpoint: its content.
        named: predictors package.module:Class that the user names. Building a predictor imports
            its module, and a checkpoint must not choose what is imported.

    Raises:
        ConfigError: they are not settings of this version or an earlier one, or their predictor is
            other code that `named` does not have.
        CheckpointError: these are weights alone, and they fit no known network.
    """
    if not checkpoint.settings:
        return public_settings(checkpoint.predictor, path)
    settings = from_plain(checkpoint.settings, path)
    if is_elsewhere(settings.predictor) and settings.predictor not in named:
        raise ConfigError(
            f"{path} was trained with predictor={settings.predictor}, which is not part of this "
            "project. It is not imported because a file names it: if you trust this code, name it "
            "on the command line, too"
        )
    return replace(settings, logs=path.resolve().parent.parent.parent)
