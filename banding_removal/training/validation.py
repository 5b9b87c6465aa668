"""Validation: per-volume figures, by scanner and acquisition, and the slices for the grid.

Several processes divide the volumes among them and get the same figures as one.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from banding_removal.data.batch import Batch
from banding_removal.data.dataset import Draw, SliceDataset
from banding_removal.data.operators import center_crop, crop_to_smaller, rss, to_image
from banding_removal.data.sampler import shares_by_volume
from banding_removal.losses.reconstruction import reconstruction_loss
from banding_removal.metrics.banding import BandingOfSlice, banding_of_slice
from banding_removal.metrics.image_quality import Quality, VolumeQuality
from banding_removal.metrics.low_signal import volume_scale
from banding_removal.metrics.statistics import summarize
from banding_removal.model.predictor import Predictor
from banding_removal.pictures.grids import DisplaySlice
from banding_removal.processes.team import Team
from banding_removal.training.loading import batches_of, make_loader

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """Means over volumes; `figures` has loss, nmse, psnr, ssim, and `ssim/<group>` and so on.

    Those that begin with "banding" are means over slices, NaN where not measurable.
    """

    figures: dict[str, float]
    volumes: dict[str, Quality]
    display: list[DisplaySlice]


@dataclass(kw_only=True)
class _Part:
    """What one process found."""

    stopped: bool = False
    failure: str = ""
    volumes: dict[str, VolumeQuality] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    shown: dict[int, DisplaySlice] = field(default_factory=dict)
    banding: list[BandingOfSlice] = field(default_factory=list)


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


class Validator:
    """Validation of one predictor after another on the same slices.

    Every slice is reconstructed with phase encoding along x, as it was acquired, which gives the
    image quality, and along y, which together with the first gives the banding; those that were
    undersampled by the scanner only as they are.

    Args:
        dataset: all validation slices.
        display: slices to return images of.
        device: of the predictors.
        workers: loading processes of each process.
        l1_weight: of the loss.
        team: the processes, each of which has its share of whole volumes.
    """

    def __init__(
        self,
        dataset: SliceDataset,
        *,
        display: Sequence[int],
        device: torch.device,
        workers: int,
        l1_weight: float,
        team: Team,
    ) -> None:
        self.dataset = dataset
        self.display = display
        self.device = device
        self.l1_weight = l1_weight
        self.team = team
        self._draws = [
            Draw(epoch=0, index=index, rotated=rotated)
            for index in shares_by_volume(dataset, team.size)[team.rank]
            for rotated in (False, True)
            if not rotated or dataset.volumes[dataset.places[index][0]].measured is None
        ]
        self._loader = make_loader(dataset, [[draw] for draw in self._draws], workers, device)
        self._scales: dict[str, float] = {}

    @torch.no_grad()
    def run(self, predictor: Predictor) -> ValidationResult | None:
        """Reconstruct every slice; the result is that of all processes, in all of them.

        Returns:
            None if any process was asked to stop.

        Raises:
            FloatingPointError: a reconstruction is not finite; the file and slice are named.
        """
        part = _Part()
        predictor.eval()
        bar = tqdm(
            batches_of(self._loader),
            "validate",
            total=len(self._draws),
            leave=False,
            mininterval=1,
            disable=not self.team.is_first,
        )
        upright: DisplaySlice | None = None
        for draw, on_cpu in zip(self._draws, bar, strict=True):
            if self.team.stop.signal_name is not None:
                part.stopped = True
                break
            batch = on_cpu.to(self.device)
            output = predictor(batch.masked_kspace, batch.mask, batch.acs_lines)
            if not output.isfinite().all():
                part.failure = f"the reconstruction of {batch.describe()} is not finite"
                break
            if not draw.rotated:
                upright = self._judge(part, draw.index, batch, output)
            elif upright is not None:
                upright = self._judge_banding(part, upright, output)
            if draw.index in self.display and upright is not None:
                part.shown[draw.index] = upright
        parts = self.team.gather(part)
        failures = [part.failure for part in parts if part.failure]
        if failures:
            raise FloatingPointError("; ".join(failures))  # in all processes alike
        return self._result(parts)

    def _judge(self, part: "_Part", index: int, batch: Batch, output: Tensor) -> DisplaySlice:
        """Loss and quality of a slice as it was acquired, added to this process's part."""
        volume = self.dataset.volumes[self.dataset.places[index][0]]
        assert batch.target is not None, "the data set is made with require_target"
        loss, _ = reconstruction_loss(output, batch.target, batch.data_range, self.l1_weight)
        part.losses[index] = float(loss)
        reconstruction, target = crop_to_smaller(output, batch.target)
        data_range = float(batch.data_range)
        sums = part.volumes.setdefault(volume.name, VolumeQuality(data_range=data_range))
        return DisplaySlice(
            name=volume.name,
            slice_index=batch.slices[0],
            acquisition=volume.acquisition,
            target=target[0, 0],
            reconstruction=reconstruction[0, 0],
            zero_filled=center_crop(rss(to_image(batch.masked_kspace)), _size(target))[0, 0],
            data_range=data_range,
            scale=self._scale(self.dataset.places[index][0]),
            quality=sums.add(reconstruction, target, batch.data_range),
        ).to(CPU if index in self.display else self.device)

    def _judge_banding(self, part: "_Part", upright: DisplaySlice, output: Tensor) -> DisplaySlice:
        """Banding of a slice, from its reconstruction along y, added to this process's part."""
        other = output[0, 0].T.to(upright.target.device)
        sizes = [image.shape for image in (upright.reconstruction, other)]
        size = (min(height for height, _ in sizes), min(width for _, width in sizes))
        banding = banding_of_slice(
            center_crop(upright.reconstruction, size),
            center_crop(other, size),
            center_crop(upright.target, size),
            scale=upright.scale,
            volume=upright.name,
            slice_index=upright.slice_index,
        )
        part.banding.append(banding)
        return replace(upright, other=center_crop(other, size), banding=banding)

    def _scale(self, volume_index: int) -> float:
        """The unit of banding of a volume, from all its targets; read once."""
        name = self.dataset.volumes[volume_index].name
        if name not in self._scales:
            self._scales[name] = volume_scale(self.dataset.targets(volume_index))
        return self._scales[name]

    def _result(self, parts: Sequence["_Part"]) -> ValidationResult | None:
        if any(part.stopped for part in parts):
            return None
        total = _Part()
        for part in parts:
            total.volumes |= part.volumes
            total.losses |= part.losses
            total.shown |= part.shown
            total.banding += part.banding
        # In the order of the data set: sums come out the same to the last bit for any parts.
        volumes = self.dataset.volumes
        names = dict.fromkeys(volumes[place[0]].name for place in self.dataset.places)
        results = {name: total.volumes[name].result() for name in names}
        mean_loss = float(np.mean([total.losses[index] for index in range(len(self.dataset))]))
        figures = {
            "loss": mean_loss,
            **_means(list(results.values())),
            **_banding_figures(total.banding),
        }
        groups = {volume.name: volume.group for volume in volumes if volume.name in names}
        for group in sorted(set(groups.values())):
            members = [name for name, its_group in groups.items() if its_group == group]
            of_group = _means([results[name] for name in members]) | _banding_figures(
                [item for item in total.banding if item.volume in members]
            )
            figures |= {f"{key}/{group}": value for key, value in of_group.items()}
        display = [total.shown[index] for index in self.display]
        return ValidationResult(figures=figures, volumes=results, display=display)


def _banding_figures(slices: Sequence[BandingOfSlice]) -> dict[str, float]:
    """Means over slices of the low-signal pixels' figures, and B of either part of them."""
    summary = summarize(slices, resamples=200)
    region = summary.low_signal
    return {
        "banding": region.contribution.value,
        "banding_low": region.contribution.low,
        "banding_high": region.contribution.high,
        "banding_excess": region.excess.value,
        "banding_along": region.along.value,
        "banding_across": region.across.value,
        "banding_background": summary.background.contribution.value,
        "banding_anatomy": summary.anatomy.contribution.value,
    }


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
