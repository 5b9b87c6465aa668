"""A run's folder with the checkpoint of an untrained predictor."""

from dataclasses import replace
from pathlib import Path

import torch

from banding_removal.config.overrides import plain
from banding_removal.config.settings import Settings
from banding_removal.runs.build import build_predictor
from banding_removal.runs.checkpoint import Checkpoint, save_checkpoint


def save_predictor(folder: Path, trained: Settings, seed: int = 0) -> Path:
    """A run's folder with a checkpoint of an untrained predictor."""
    torch.manual_seed(seed)
    weights = build_predictor(trained, torch.device("cpu")).state_dict()
    checkpoint = replace(Checkpoint.of_weights(weights), epoch=3, step=70, settings=plain(trained))
    save_checkpoint(folder, checkpoint, keep=0)
    return folder
