"""A trained predictor: from a path to a network with its weights, and the settings it came with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from banding_removal.config.settings import Settings
from banding_removal.runs.build import build_predictor
from banding_removal.runs.checkpoint import Checkpoint, load_checkpoint
from banding_removal.runs.resume import saved_settings


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
