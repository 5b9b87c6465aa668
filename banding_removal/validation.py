"""Validation: per-volume figures, by scanner and acquisition, and the slices for the grid.

Several processes divide the volumes among them and get the same figures as one.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from banding_removal.distributed import Team
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


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What one process found."""

    stopped: bool
    volumes: dict[str, VolumeQuality]
    losses: dict[int, float]
    shown: dict[int, DisplaySlice]


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
    share: Sequence[int],
    *,
    device: torch.device,
    l1_weight: float,
    display: Sequence[int],
    team: Team,
) -> ValidationResult | None:
    """Reconstruct every slice of `dataset`; the result is that of all processes, in all of them.

    Args:
        predictor: to be judged.
        loader: batches of one slice each: this process's share.
        dataset: all validation slices.
        share: the slices that the loader yields, in this order; volumes are not divided.
        device: of the predictor.
        l1_weight: of the loss.
        display: slices to return images of.
        team: the processes, each of which has its share.

    Returns:
        None if any process was asked to stop.

    Raises:
        FloatingPointError: a reconstruction is not finite; the file and slice are named.
    """
    groups = {volume.name: volume.group for volume in dataset.volumes}
    acquisitions = {volume.name: volume.acquisition for volume in dataset.volumes}
    volumes: dict[str, VolumeQuality] = {}
    losses: dict[int, float] = {}
    shown: dict[int, DisplaySlice] = {}
    wanted = set(display)

    predictor.eval()
    bar = tqdm(loader, desc="validate", leave=False, mininterval=1, disable=not team.is_first)
    for index, on_cpu in zip(share, bar, strict=True):
        if team.stop.signal_name is not None:
            break
        batch = on_cpu.to(device)
        output = predictor(batch.masked_kspace, batch.mask, batch.acs_lines)
        if not output.isfinite().all():
            raise FloatingPointError(f"the reconstruction of {batch.describe()} is not finite")
        loss, _ = reconstruction_loss(output, batch.target, batch.data_range, l1_weight)
        losses[index] = float(loss)
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

    stopped = team.stop.signal_name is not None
    parts = team.gather(_Part(stopped=stopped, volumes=volumes, losses=losses, shown=shown))
    if any(part.stopped for part in parts):
        return None
    volumes, losses, shown = {}, {}, {}
    for part in parts:
        volumes |= part.volumes
        losses |= part.losses
        shown |= part.shown
    # In the order of the data set: sums come out the same to the last bit for any number of parts.
    names = list(dict.fromkeys(dataset.volumes[place[0]].name for place in dataset.places))
    results = {name: volumes[name].result() for name in names}
    mean_loss = float(np.mean([losses[index] for index in range(len(dataset))]))
    figures = {"loss": mean_loss, **_means(list(results.values()))}
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
