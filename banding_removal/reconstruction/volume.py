"""Images of whole volumes from a trained predictor, slice by slice, in memory."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from banding_removal.data.batch import Batch, Example, collate
from banding_removal.data.dataset import Draw, SliceDataset
from banding_removal.data.operators import center_crop
from banding_removal.data.volume import Volume
from banding_removal.model.predictors import reconstruct


@dataclass(frozen=True, kw_only=True)
class SliceImage:
    """One reconstructed slice, upright and cropped, on the CPU."""

    slice_index: int
    image: Tensor  # float32 (h, w)
    target: Tensor | None  # float32 (h, w)
    columns: int  # of k-space along the undersampled axis
    measured_columns: int
    acs_lines: int


def output_size(volume: Volume) -> tuple[int, int]:
    """Height and width of a volume's images, as fastMRI crops them.

    This is the size of the target. Without a target it is the reconstruction size of the header;
    if k-space has fewer columns than that (a few brain volumes), it is a square of that many
    columns. It never exceeds the size of k-space.
    """
    height, width = volume.target_size or volume.recon_size or (volume.height, volume.width)
    if volume.target_size is None and volume.width < width:
        height = width = volume.width
    return min(height, volume.height), min(width, volume.width)


def images_of_volume(
    predictor: nn.Module,
    dataset: SliceDataset,
    volume_index: int,
    *,
    device: torch.device,
    rotated: bool = False,
) -> Iterator[SliceImage]:
    """Reconstruct the slices of a volume one after the other.

    The next slice is read while the current one is reconstructed; memory does not grow with the
    volume. The predictor is switched to evaluation mode.

    Args:
        predictor: maps masked k-space, mask and numbers of centre lines to images, as
            `UnrolledNetwork`; on `device`.
        dataset: masks are those of epoch 0, as in validation. If it was made with
            `require_target=False`, volumes may lack a target.
        volume_index: position in `dataset.volumes`; the slices are those in `dataset.places`.
        device: of the predictor.
        rotated: transpose k-space before it is undersampled, so that phase encoding is along y.
            Images are upright in either case.

    Yields:
        Each slice, in order.

    Raises:
        ValueError: `rotated`, but the scanner undersampled the volume.
        VolumeError: the file cannot be read, or holds NaN or Inf.
        FloatingPointError: a reconstruction is not finite; the file and slice are named.
    """
    volume = dataset.volumes[volume_index]
    if rotated and volume.measured is not None:
        raise ValueError(f"{volume.path} was undersampled by the scanner: it cannot be transposed")
    draws = [
        Draw(epoch=0, index=index, rotated=rotated)
        for index, (of_volume, _) in enumerate(dataset.places)
        if of_volume == volume_index
    ]
    size = output_size(volume)
    predictor.eval()
    for example in _read_ahead(dataset, draws):
        image = upright_image(predictor, collate([example]).to(device))
        target = None if example.target is None else example.target[0]
        if target is not None and rotated:
            target = target.T
        yield SliceImage(
            slice_index=example.slice_index,
            # Cloned, because a view would keep the whole image in memory.
            image=center_crop(image, size).cpu().clone(),
            target=None if target is None else center_crop(target, size).clone(),
            columns=example.mask.shape[-1],
            measured_columns=int(example.mask.sum()),
            acs_lines=example.acs_lines,
        )


@torch.no_grad()
def upright_image(predictor: nn.Module, batch: Batch) -> Tensor:
    """Reconstruct a batch of one slice: real (H, W), transposed back if its k-space was transposed.

    Raises:
        FloatingPointError: the reconstruction is not finite; the file and slice are named.
    """
    output = reconstruct(predictor, batch)
    if not output.isfinite().all():
        raise FloatingPointError(f"the reconstruction of {batch.describe()} is not finite")
    image = output[0, 0]
    return image.T if batch.transposed[0] else image


def _read_ahead(dataset: SliceDataset, draws: Sequence[Draw]) -> Iterator[Example]:
    """The examples of `draws`, each read while the one before it is being used."""
    with ThreadPoolExecutor(max_workers=1) as reader:
        reads = (reader.submit(dataset.__getitem__, draw) for draw in draws)
        begun = deque(islice(reads, 1))
        while begun:
            begun.extend(islice(reads, 1))
            yield begun.popleft().result()
