"""Reconstruction loss, image quality and learning rates against the published ones."""

from collections.abc import Iterator

import torch

from banding_removal.config.settings import Settings
from banding_removal.losses.reconstruction import reconstruction_loss
from banding_removal.metrics.image_quality import VolumeQuality
from banding_removal.training.step import learning_rate
from tests.support.parity.compare import Parity, load, row, worst


def loss_parity() -> Iterator[Parity]:
    """The reconstruction loss and its gradient."""
    golden = load("ssim_metrics")
    for dtype in ("float32", "float64"):
        rows: dict[str, list[Parity]] = {}
        for j in range(3):
            x = torch.tensor(golden[f"X{j}"].astype(dtype), requires_grad=True)
            y = torch.tensor(golden[f"Y{j}"].astype(dtype))
            data_range = torch.tensor(golden[f"range{j}"].astype(dtype))
            loss, similarity = reconstruction_loss(x, y, data_range)
            loss.backward()
            found = {"loss": loss, "ssim": similarity, "dloss_dX": x.grad}
            for name, ours in found.items():
                exact, published = (golden[f"{name}{j}_{d}"] for d in ("float64", dtype))
                compared = row("ssim_metrics", name, dtype, ours, exact, published)
                rows.setdefault(name, []).append(compared)
        yield from (worst(compared_rows) for compared_rows in rows.values())


def quality_parity() -> Iterator[Parity]:
    """Metrics of whole volumes; the published sums are float32 sums, ours float64."""
    golden = load("ssim_metrics")
    for j in range(2):
        targets, predictions = torch.tensor(golden[f"gt{j}"]), torch.tensor(golden[f"pred{j}"])
        data_range = targets.max()
        volume = VolumeQuality(data_range=float(data_range))
        for prediction, target in zip(predictions, targets, strict=True):
            volume.add(prediction[None, None], target[None, None], data_range[None])
        for key, ours in vars(volume.result()).items():
            yield row("ssim_metrics", f"{key} of volume {j}", "float32", ours, golden[f"{key}{j}"])


def lr_parity() -> Iterator[Parity]:
    """Learning rates of 301 epochs, base 1e-3, a tenth every 40 epochs."""
    golden = load("lr")
    settings = Settings(lr=1e-3, lr_drop_every=40)
    ours = [learning_rate(settings, int(epoch), settings.lr) for epoch in golden["epochs"]]
    yield row("lr", "every 40 epochs", "float64", ours, golden["every40"][:, 0])
