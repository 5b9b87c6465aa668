"""Validation: per-volume figures, by scanner and acquisition, and the slices for the grid."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from banding_removal.losses import reconstruction_loss
from banding_removal.metrics import Quality, VolumeQuality
from data.dataset import Batch, SliceDataset
from data.operators import center_crop, crop_to_smaller, rss, to_image
from model.predictor import Predictor


@dataclass(frozen=True, kw_only=True)
class DisplaySlice:
    """A validation slice for the grid: images (h, w) on the CPU and what to write below."""

    name: str
    slice_index: int
    acquisition: str
    target: Tensor
    reconstruction: Tensor
    zero_filled: Tensor
    data_range: float  # largest target value of the volume
    quality: Quality


@dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """Means over volumes; `figures` has loss, nmse, psnr, ssim, and `ssim/<group>` and so on."""

    figures: dict[str, float]
    volumes: dict[str, Quality]
    display: list[DisplaySlice]


def choose_display_slices(dataset: SliceDataset, count: int) -> list[int]:
    """`count` fixed slices, spread over volumes and over positions; fewer only if there are fewer.

    The first one shown is the first slice of a volume: ends hold little or no anatomy, where
    artifacts are the worst. The others step through the volumes and, by the golden ratio, through
    the positions within them, so that any number of them is spread out.
    """
    places = dataset.places
    count = min(count, len(places))
    if count == 0:
        return []
    by_volume: dict[int, list[int]] = defaultdict(list)
    for index, (volume, _) in enumerate(places):
        by_volume[volume].append(index)
    groups = list(by_volume.values())
    chosen = [groups[0][0]]
    for i in range(1, count):
        group = groups[round(i * (len(groups) - 1) / max(1, count - 1))]
        position = 0.15 + 0.7 * ((0.5 + i * 0.618034) % 1)
        free = [index for index in group if index not in chosen]
        if not free:  # a small volume is used up
            free = [index for index in range(len(places)) if index not in chosen]
        chosen.append(min(free, key=lambda index: abs(index - group[0] - position * len(group))))
    return chosen


@torch.no_grad()
def validate(
    predictor: Predictor,
    loader: DataLoader[Batch],
    dataset: SliceDataset,
    *,
    device: torch.device,
    l1_weight: float,
    display: Sequence[int],
) -> ValidationResult:
    """Reconstruct every slice of `dataset` (in the order of `loader`, one slice a batch).

    Raises:
        FloatingPointError: a reconstruction is not finite; the file and slice are named.
    """
    groups = {volume.name: volume.group for volume in dataset.volumes}
    acquisitions = {volume.name: volume.acquisition for volume in dataset.volumes}
    volumes: dict[str, VolumeQuality] = {}
    losses: list[float] = []
    shown: dict[int, DisplaySlice] = {}
    wanted = set(display)

    predictor.eval()
    for index, on_cpu in enumerate(tqdm(loader, desc="validate", leave=False, mininterval=1)):
        batch = on_cpu.to(device)
        output = predictor(batch.masked_kspace, batch.mask, batch.acs_lines)
        if not output.isfinite().all():
            raise FloatingPointError(f"the reconstruction of {batch.describe()} is not finite")
        loss, _ = reconstruction_loss(output, batch.target, batch.data_range, l1_weight)
        losses.append(float(loss))
        reconstruction, target = crop_to_smaller(output, batch.target)
        name = batch.names[0]
        volume = volumes.setdefault(name, VolumeQuality(data_range=float(batch.data_range)))
        quality = volume.add(reconstruction, target, batch.data_range)
        if index in wanted:
            zero_filled = rss(to_image(batch.masked_kspace))
            shown[index] = DisplaySlice(
                name=name,
                slice_index=batch.slices[0],
                acquisition=acquisitions[name],
                target=target[0, 0].cpu(),
                reconstruction=reconstruction[0, 0].cpu(),
                zero_filled=center_crop(zero_filled, _size(target))[0, 0].cpu(),
                data_range=float(batch.data_range),
                quality=quality,
            )
    results = {name: volume.result() for name, volume in volumes.items()}
    figures = {"loss": float(np.mean(losses)), **_means(list(results.values()))}
    for group in sorted(set(groups.values())):
        members = [quality for name, quality in results.items() if groups[name] == group]
        if members:
            figures |= {f"{key}/{group}": value for key, value in _means(members).items()}
    return ValidationResult(
        figures=figures, volumes=results, display=[shown[index] for index in display]
    )


def _size(image: Tensor) -> tuple[int, int]:
    return (image.shape[-2], image.shape[-1])


def _means(volumes: Sequence[Quality]) -> dict[str, float]:
    """Mean of each figure over volumes; those that have none (an all-zero target) do not count."""
    rows = [asdict(quality) for quality in volumes]
    means = {}
    for key in rows[0]:
        values = [row[key] for row in rows if not np.isnan(row[key])]
        means[key] = float(np.mean(values)) if values else float("nan")
    return means
