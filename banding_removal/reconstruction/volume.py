"""Images of whole volumes from a trained predictor, slice by slice, in memory."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from banding_removal.data.batch import Example, collate
from banding_removal.data.dataset import Draw, SliceDataset
from banding_removal.data.operators import center_crop
from banding_removal.data.volume import Volume


@dataclass(frozen=True, kw_only=True)
class SliceImage:
    """One reconstructed slice, upright and cropped, on the CPU."""

    slice_index: int
    image: Tensor  # float32 (h, w)
    target: Tensor | None  # float32 (h, w)
    columns: int  # of k-space along the axis that was undersampled
    measured_columns: int
    acs_lines: int


def output_size(volume: Volume) -> tuple[int, int]:
    """Height and width of a volume's images, as fastMRI crops them.

    Those of the target; without one, of the header's reconstruction, and where k-space has fewer
    columns than that (a few brain volumes) a square of so many. Never more than k-space has.
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

    One slice is on the device and the next is being read meanwhile: memory does not grow with the
    volume.

    Args:
        predictor: of masked k-space, mask and numbers of centre lines, as `Predictor`; on `device`.
        dataset: masks are as it draws them in epoch 0, as in validation; its `rotate_probability`
            is not used. Made with `require_target=False` it may have volumes without target.
        volume_index: position in `dataset.volumes`; slices are those in `dataset.places`.
        device: of the predictor.
        rotated: transpose the k-space before it is undersampled, so that phase encoding is along
            the other axis; images come out upright all the same.

    Yields:
        Each slice, in order.

    Raises:
        ValueError: `rotated`, of a volume that was undersampled by the scanner.
        VolumeError: the file cannot be read, or holds NaN or Inf.
        FloatingPointError: a reconstruction is not finite; the file and slice are named.
    """
    volume = dataset.volumes[volume_index]
    if rotated and volume.measured is not None:
        raise ValueError(f"{volume.path} was undersampled by the scanner: it cannot be transposed")
    draws = [Draw(epoch=0, index=i) for i, (v, _) in enumerate(dataset.places) if v == volume_index]
    size = output_size(volume)
    predictor.eval()
    for example in _read_ahead(dataset.with_rotation(float(rotated)), draws):
        batch = collate([example]).to(device)
        with torch.no_grad():
            output = predictor(batch.masked_kspace, batch.mask, batch.acs_lines)
        if not output.isfinite().all():
            raise FloatingPointError(
                f"{volume.path}: the reconstruction of slice {example.slice_index} is not finite"
            )
        target = example.target
        if rotated:
            output = output.swapaxes(-2, -1)
            target = None if target is None else target.swapaxes(-2, -1)
        yield SliceImage(
            slice_index=example.slice_index,
            # A copy of the part: a view would keep the whole image, for as long as it is kept.
            image=center_crop(output, size)[0, 0].cpu().clone(),
            target=None if target is None else center_crop(target, size)[0].clone(),
            columns=example.mask.shape[-1],
            measured_columns=int(example.mask.sum()),
            acs_lines=example.acs_lines,
        )


def reconstruct_volume(
    predictor: nn.Module,
    dataset: SliceDataset,
    volume_index: int,
    *,
    device: torch.device,
    rotated: bool = False,
) -> Tensor:
    """All images of a volume, float32 (slice, h, w) on the CPU; see `images_of_volume`."""
    slices = images_of_volume(predictor, dataset, volume_index, device=device, rotated=rotated)
    return torch.stack([item.image for item in slices])


def _read_ahead(dataset: SliceDataset, draws: Sequence[Draw]) -> Iterator[Example]:
    """The examples of `draws`, each read while the one before it is being used."""
    with ThreadPoolExecutor(max_workers=1) as reader:
        reads = (reader.submit(dataset.__getitem__, draw) for draw in draws)
        begun = deque(islice(reads, 1))
        while begun:
            begun.extend(islice(reads, 1))
            yield begun.popleft().result()
