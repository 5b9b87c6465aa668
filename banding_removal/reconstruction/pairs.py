"""Slices reconstructed with phase encoding along either axis.

Anatomy is the same in both images and the predictor does not know the axis, so what differs is
banding.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

from banding_removal.data.batch import Batch, collate
from banding_removal.data.dataset import Draw, SliceDataset
from banding_removal.data.operators import center_crop, crop_to_smaller
from banding_removal.metrics.low_signal import volume_scale
from banding_removal.metrics.slice_pair import SlicePair
from banding_removal.reconstruction.volume import upright_image


def reconstruct_pairs(
    predictor: nn.Module,
    dataset: SliceDataset,
    indices: Sequence[int],
    device: torch.device,
    *,
    batches: Iterable[Batch] | None = None,
    scales: dict[int, float] | None = None,
) -> Iterator[SlicePair]:
    """Undersample and reconstruct slices along x and along y.

    Slices that the scanner undersampled are reconstructed along x only. The predictor is switched
    to evaluation mode.

    Args:
        predictor: called with masked k-space, mask and numbers of centre lines; on `device`.
        dataset: made with `require_target`. Masks are those of epoch 0, as in validation.
        indices: positions in `dataset.places`.
        device: of the predictor and of the images.
        batches: of `pair_draws(dataset, indices)`, for instance from a loader with workers; by
            default each is read when its turn comes.
        scales: of volumes, by position in `dataset.volumes`; unknown ones are computed and added.

    Yields:
        A pair for each index, cropped to the smaller height and width of image and target.

    Raises:
        VolumeError: a file cannot be read, or holds NaN or Inf.
        FloatingPointError: a reconstruction is not finite; the file and slice are named.
    """
    if batches is None:
        batches = (collate([dataset[draw]]) for draw in pair_draws(dataset, indices))
    loaded = iter(batches)
    scales = {} if scales is None else scales
    predictor.eval()
    for index in indices:
        volume_index, slice_index = dataset.places[index]
        volume = dataset.volumes[volume_index]
        batch = next(loaded).to(device)
        assert batch.target is not None, "the data set was made with require_target"
        along_x, target = crop_to_smaller(upright_image(predictor, batch), batch.target[0, 0])
        data_range = float(batch.data_range)
        along_y = None
        if volume.measured is None:
            batch = next(loaded).to(device)
            height, width = along_x.shape
            along_y = center_crop(upright_image(predictor, batch), (height, width))
        if volume_index not in scales:
            scales[volume_index] = volume_scale(dataset.targets(volume_index))
        yield SlicePair(
            name=volume.name,
            slice_index=slice_index,
            acquisition=volume.acquisition,
            data_range=data_range,
            scale=scales[volume_index],
            target=target,
            along_x=along_x,
            along_y=along_y,
            why_no_along_y="undersampled by the scanner along x" if along_y is None else "",
        )


def pair_draws(dataset: SliceDataset, indices: Sequence[int]) -> list[Draw]:
    """What `reconstruct_pairs` reads: each slice as acquired, then transposed if it can be."""
    return [
        Draw(epoch=0, index=index, rotated=rotated)
        for index in indices
        for rotated in (False, True)
        if not rotated or dataset.volumes[dataset.places[index][0]].measured is None
    ]
