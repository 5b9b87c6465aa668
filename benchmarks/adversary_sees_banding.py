"""Can the adversary see the banding? Its held-out accuracy with a frozen predictor.

    python -m benchmarks.adversary_sees_banding                        (the newest run's predictor)
    python -m benchmarks.adversary_sees_banding checkpoint=logs/demo adversary=simple steps=400
    python -m benchmarks.adversary_sees_banding view=low_signal sweep=true data_path=<other data>

Training slices are reconstructed once in each orientation by the frozen predictor; the adversary
is trained on them with the objective's own loss, and tested on held-out volumes. Chance is 0.5. An
adversary that stays there has nothing to teach the predictor. With `sweep`, each constant of the
low-signal view is halved and doubled in turn.
"""

import statistics
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from banding_removal.command_line import user_errors
from banding_removal.config.overrides import from_words
from banding_removal.config.settings import REPOSITORY
from banding_removal.data.dataset import SliceDataset
from banding_removal.losses.adversary_input import View
from banding_removal.losses.orientation import OrientationObjective
from banding_removal.metrics import low_signal_view
from banding_removal.model.classifiers import Architecture, build_adversary
from banding_removal.reconstruction.pairs import reconstruct_pairs
from banding_removal.runs.build import build_predictor, choose_device
from banding_removal.runs.checkpoint import find_checkpoint, load_checkpoint
from banding_removal.runs.datasets import make_datasets
from banding_removal.runs.trained import saved_settings

# The constants of the view, and their values.
SWEPT = {
    name: getattr(low_signal_view, name)
    for name in ("BLUR", "LOW_SIGNAL", "LIMIT_WIDTH", "LEVEL_BLUR", "LEAST_LEVEL")
}


@dataclass(frozen=True, kw_only=True)
class SightSettings:
    """What to try."""

    checkpoint: Path = REPOSITORY / "logs" / "run"
    data_path: Path | None = None  # null: the checkpoint's
    adversary: Architecture = "shallow"
    view: View = "image"
    sweep: bool = False
    chans: int | None = 12  # width; null: the published one
    train_slices: int = 96
    test_slices: int = 40
    batch: int = 8
    steps: int = 200
    lr: float = 2e-3
    reg_param: float = 0.1
    seed: int = 0
    device: str = "auto"


def reconstructions(
    predictor: nn.Module, dataset: SliceDataset, count: int, device: torch.device
) -> Tensor:
    """Upright reconstructions (2, slice, 1, h, w): phase encoding along x, along y."""
    step = max(1, len(dataset) // count)
    pairs = reconstruct_pairs(predictor, dataset, range(0, len(dataset), step)[:count], device)
    images = [torch.stack([p.along_x, p.along_y]).cpu() for p in pairs if p.along_y is not None]
    return torch.stack(images, dim=1)[:, :, None]


def as_made(images: Tensor, rotated: Tensor) -> Tensor:
    """Upright images (B, 1, h, w) as the predictor makes them: transposed where rotated."""
    return torch.where(rotated.bool()[:, None, None, None], images.swapaxes(-2, -1), images)


def main(settings: SightSettings) -> None:
    """Print accuracy by step, or of every variant of the view."""
    path = find_checkpoint(settings.checkpoint)
    checkpoint = load_checkpoint(path)
    trained = saved_settings(path, checkpoint)
    if settings.data_path is not None:
        trained = replace(trained, data_path=settings.data_path)
    device = choose_device(settings.device)
    predictor = build_predictor(trained, device, checkpoint, path)
    train_set, val_set = make_datasets(trained)
    train = reconstructions(predictor, train_set, settings.train_slices, device)
    test = reconstructions(predictor, val_set, settings.test_slices, device)

    print(f"{path}: {train.shape[1]} training slices, {test.shape[1]} held-out slices")
    if settings.sweep:
        for name, usual in SWEPT.items():
            for factor in (0.5, 1.0, 2.0):
                setattr(low_signal_view, name, factor * usual)
                with redirect_stdout(None):
                    found = train_adversary(settings, train, test, device)
                print(f"{name:12} {factor * usual:8.4f} held out {found:.3f}", flush=True)
            setattr(low_signal_view, name, usual)
    else:
        train_adversary(settings, train, test, device)


def train_adversary(
    settings: SightSettings, train: Tensor, test: Tensor, device: torch.device
) -> float:
    """The mean accuracy on `test` over the second half of the steps; prints it by step."""
    torch.manual_seed(settings.seed)
    network = build_adversary(settings.adversary, chans=settings.chans).to(device)
    objective = OrientationObjective(network, reg_param=settings.reg_param, view=settings.view)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr, betas=(0.5, 0.99))
    print(f"{'step':>6} {'loss':>8} {'training':>9} {'held out':>9}   (accuracy)")
    seen: list[float] = []
    tested: list[float] = []
    for step in range(1, settings.steps + 1):
        rotated = (torch.rand(settings.batch) < 0.5).float()
        chosen = train[rotated.long(), torch.randint(train.shape[1], (settings.batch,))]
        losses = objective.adversary_loss(as_made(chosen, rotated).to(device), rotated.to(device))
        optimizer.zero_grad()
        losses.loss.backward()
        optimizer.step()
        seen.append(losses.accuracy.item())
        if step % 25 == 0:
            loss = losses.classification.item()
            tested.append(held_out := accuracy(objective, test, device))
            print(f"{step:6} {loss:8.4f} {sum(seen[-25:]) / 25:9.3f} {held_out:9.3f}", flush=True)
    return statistics.mean(tested[len(tested) // 2 :])


def accuracy(objective: OrientationObjective, images: Tensor, device: torch.device) -> float:
    """Balanced accuracy over (2, slice, 1, h, w), both orientations of every slice."""
    right = []
    for label, group in enumerate(images):
        for image in group.split(8):
            rotated = torch.full((len(image),), float(label))
            losses = objective.adversary_loss(
                as_made(image, rotated).to(device), rotated.to(device)
            )
            right.append(losses.accuracy.item() * len(image))
    return sum(right) / images[:, :, 0].shape[:2].numel()


if __name__ == "__main__":
    with user_errors():
        main(from_words(SightSettings(), sys.argv[1:]))
