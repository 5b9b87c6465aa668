"""Checkpoints of a tiny predictor, and one that would run code."""

from pathlib import Path

import torch

from banding_removal.model.predictor import Predictor
from banding_removal.runs.checkpoint import Checkpoint, random_state


def tiny_predictor(chans: int = 2) -> Predictor:
    return Predictor(cascades=1, chans=chans, pools=1, sens_chans=2)


def checkpoint_of(predictor: Predictor, epoch: int, batches: int = 0) -> Checkpoint:
    optimizer = torch.optim.Adam(predictor.parameters())
    return Checkpoint(
        epoch=epoch,
        step=10 * epoch + batches,
        batches=batches,
        sums={"loss": 0.5},
        predictor=predictor.state_dict(),
        optimizer=optimizer.state_dict(),
        adversary=None,
        adversary_optimizer=None,
        rng=[random_state()],
        history=[{"epoch": epoch, "val_ssim": 0.5}],
        start={"ssim": 0.5},
        events=[{"step": 3, "why": "a loss is nan"}],
        settings={"lr": 1e-3},
        volumes={"training": ["a.h5"], "validation": []},
    )


class Exploit:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (str(self.victim),)
