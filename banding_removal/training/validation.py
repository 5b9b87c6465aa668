"""Validation: image quality and banding of the validation slices, and what the grid shows.

Several processes divide the volumes among them; together they get the same metrics as one.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from banding_removal.data.batch import collate
from banding_removal.data.dataset import Draw, SliceDataset
from banding_removal.data.operators import center_crop, rss, to_image
from banding_removal.data.sampler import shares_by_volume
from banding_removal.losses.reconstruction import reconstruction_loss
from banding_removal.metrics.banding import BandingOfSlice, banding_of_slice
from banding_removal.metrics.image_quality import Quality, VolumeQuality
from banding_removal.metrics.slice_pair import SlicePair
from banding_removal.metrics.statistics import summarize
from banding_removal.pictures.validation_grid import ValidatedSlice
from banding_removal.processes.team import Team
from banding_removal.reconstruction.pairs import pair_draws, reconstruct_pairs
from banding_removal.training.loading import batches_of, make_loader

CPU = torch.device("cpu")
INTERVAL_RESAMPLES = 200


@dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """The metrics of a validation, and the slices to show.

    `metrics` holds loss, nmse, psnr and ssim, means over volumes; the keys that begin with
    "banding", means over slices, NaN where not measurable; and all of them again for each scanner
    and acquisition, as `ssim/<group>`.
    """

    metrics: dict[str, float]
    volumes: dict[str, Quality]
    display: list[ValidatedSlice]


@dataclass(kw_only=True)
class _Share:
    """What one process measured."""

    stopped: bool = False
    failure: str = ""
    volumes: dict[str, VolumeQuality] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    banding: list[BandingOfSlice] = field(default_factory=list)
    shown: dict[int, ValidatedSlice] = field(default_factory=dict)


def choose_display_slices(dataset: SliceDataset, count: int) -> list[int]:
    """Choose `count` slices spread over volumes and over positions, or all if there are fewer.

    The first one is the first slice of a volume: the ends of a volume hold little or no anatomy,
    and artifacts are worst there. The others step through the volumes and, by the golden ratio,
    through the positions within them, so that any number of them is spread out.

    Returns:
        Positions in `dataset.places`, always the same for the same data set.
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

    Every slice is reconstructed with phase encoding along x, as it was acquired, which gives its
    image quality, and along y; the two images together give its banding. Slices that the scanner
    undersampled are reconstructed along x only.

    Args:
        dataset: all validation slices.
        display: positions of the slices to return images of.
        device: of the predictors.
        workers: loading processes of each process.
        l1_weight: of the loss.
        team: the processes; each of them validates its share of whole volumes.
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
        self._indices = shares_by_volume(dataset, team.size)[team.rank]
        draws = pair_draws(dataset, self._indices)
        self._loader = make_loader(dataset, [[draw] for draw in draws], workers, device)
        self._scales: dict[int, float] = {}
        self._zero_filled: dict[int, Tensor] = {}

    def run(self, predictor: nn.Module) -> ValidationResult | None:
        """Reconstruct and measure every slice; all processes get the result of all.

        Returns:
            None if any process was asked to stop.

        Raises:
            FloatingPointError: a reconstruction is not finite; the file and slice are named.
        """
        shares = self.team.gather(self._validate_share(predictor))
        failures = [share.failure for share in shares if share.failure]
        if failures:
            raise FloatingPointError("; ".join(failures))  # in all processes alike
        return None if any(share.stopped for share in shares) else self._result(shares)

    @torch.no_grad()
    def _validate_share(self, predictor: nn.Module) -> _Share:
        share = _Share()
        with tqdm(
            batches_of(self._loader, self.team.stop),
            "validate",
            total=len(self._loader),
            leave=False,
            mininterval=1,
            disable=not self.team.is_first,
        ) as batches:
            pairs = reconstruct_pairs(
                predictor,
                self.dataset,
                self._indices,
                self.device,
                batches=batches,
                scales=self._scales,
            )
            try:
                for index, pair in zip(self._indices, pairs, strict=True):
                    if self.team.stop.signal_name is not None:
                        share.stopped = True
                        break
                    self._measure(share, index, pair)
            except FloatingPointError as error:
                share.failure = str(error)
        return share

    def _measure(self, share: _Share, index: int, pair: SlicePair) -> None:
        """Add a slice's loss, image quality and banding to a share."""
        image, target = pair.along_x[None, None], pair.target[None, None]
        data_range = torch.tensor([pair.data_range], device=image.device)
        loss, _ = reconstruction_loss(image, target, data_range, self.l1_weight)
        share.losses[index] = float(loss)
        volume = share.volumes.setdefault(pair.name, VolumeQuality(data_range=pair.data_range))
        quality = volume.add(image, target, data_range)
        banding = None
        if pair.along_y is not None:
            banding = banding_of_slice(
                pair.along_x,
                pair.along_y,
                pair.target,
                scale=pair.scale,
                volume=pair.name,
                slice_index=pair.slice_index,
            )
            share.banding.append(banding)
        if index in self.display:
            share.shown[index] = ValidatedSlice(
                pair=pair.to(CPU),
                zero_filled=self._zero_filled_image(index, pair.target),
                quality=quality,
                banding=banding,
            )

    def _zero_filled_image(self, index: int, target: Tensor) -> Tensor:
        """The zero-filled image of a slice to show, cropped to its target; computed once."""
        if index not in self._zero_filled:
            draw = Draw(epoch=0, index=index, rotated=False)
            batch = collate([self.dataset[draw]]).to(self.device)
            height, width = target.shape
            image = center_crop(rss(to_image(batch.masked_kspace)), (height, width))
            self._zero_filled[index] = image[0, 0].cpu()
        return self._zero_filled[index]

    def _result(self, shares: Sequence[_Share]) -> ValidationResult:
        sums = {name: part for share in shares for name, part in share.volumes.items()}
        losses = {index: loss for share in shares for index, loss in share.losses.items()}
        shown = {index: item for share in shares for index, item in share.shown.items()}
        banding = [item for share in shares for item in share.banding]
        # In the order of the data set, so that sums do not depend on how volumes are shared.
        volumes = self.dataset.volumes
        names = dict.fromkeys(volumes[volume].name for volume, _ in self.dataset.places)
        qualities = {name: sums[name].result() for name in names}
        mean_loss = float(np.mean([losses[index] for index in range(len(self.dataset))]))
        metrics = {"loss": mean_loss, **_means([*qualities.values()]), **_banding_metrics(banding)}
        groups = {volume.name: volume.group for volume in volumes if volume.name in names}
        for group in sorted(set(groups.values())):
            members = [name for name, of_volume in groups.items() if of_volume == group]
            of_group = _means([qualities[name] for name in members])
            of_group |= _banding_metrics([item for item in banding if item.volume in members])
            metrics |= {f"{key}/{group}": value for key, value in of_group.items()}
        display = [shown[index] for index in self.display]
        return ValidationResult(metrics=metrics, volumes=qualities, display=display)


def _banding_metrics(slices: Sequence[BandingOfSlice]) -> dict[str, float]:
    """Means over slices: the metrics of the low-signal pixels, and B of either part of them."""
    summary = summarize(slices, resamples=INTERVAL_RESAMPLES)
    region = summary.low_signal
    return {
        "banding": region.contribution.value,
        "banding_low": region.contribution.low,
        "banding_high": region.contribution.high,
        "banding_signed_excess": region.signed_excess.value,
        "banding_along": region.along.value,
        "banding_across": region.across.value,
        "banding_background": summary.background.contribution.value,
        "banding_anatomy": summary.anatomy.contribution.value,
    }


def _means(volumes: Sequence[Quality]) -> dict[str, float]:
    """Mean of each metric over the volumes that have it; an all-zero target has no NMSE."""
    rows = [asdict(quality) for quality in volumes]
    means = {}
    for key in rows[0]:
        values = [row[key] for row in rows if not np.isnan(row[key])]
        means[key] = float(np.mean(values)) if values else float("nan")
    return means
