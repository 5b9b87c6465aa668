"""The same slice reconstructed with phase encoding along either axis: where banding shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from banding_removal.data.batch import collate
from banding_removal.data.dataset import SliceDataset
from banding_removal.data.operators import crop_to_smaller
from banding_removal.model.predictor import Predictor
from banding_removal.pictures.grids import Row, grey, write_page


@dataclass(frozen=True, kw_only=True)
class BothOrientations:
    """Images (h, w) of one slice, all upright, on the CPU."""

    name: str
    slice_index: int
    data_range: float
    target: Tensor
    along_x: Tensor  # reconstructed from phase encoding along x, as it was acquired
    along_y: Tensor  # reconstructed from the transposed k-space and transposed back


@torch.no_grad()
def reconstruct_both(
    predictor: Predictor, dataset: SliceDataset, indices: Sequence[int], device: torch.device
) -> list[BothOrientations]:
    """Undersample and reconstruct slices of `dataset` along each of the two axes.

    The predictor never sees which; anatomy is the same, so what differs is banding. Volumes that
    were undersampled by the scanner cannot be transposed and must not be asked for.
    """
    sources = (dataset.with_rotation(0.0), dataset.with_rotation(1.0))
    results = []
    predictor.eval()
    for index in indices:
        images = []
        for source in sources:
            batch = collate([source[index]]).to(device)
            assert batch.target is not None, "the data set is made with require_target"
            output = predictor(batch.masked_kspace, batch.mask, batch.acs_lines)
            output, target = crop_to_smaller(output, batch.target)
            upright = output.swapaxes(-2, -1) if batch.rotated.item() else output
            images.append(upright[0, 0].cpu())
            if source is sources[0]:
                shown_target = target[0, 0].cpu()
        results.append(
            BothOrientations(
                name=batch.names[0],
                slice_index=batch.slices[0],
                data_range=float(batch.data_range),
                target=shown_target,
                along_x=images[0],
                along_y=images[1],
            )
        )
    return results


def write_orientation_grid(
    path: Path, slices: Sequence[BothOrientations], *, header: Sequence[str], window: float
) -> None:
    """Write target | target, low signal | phase encoding along x | along y for each slice.

    The last three are windowed to white at `window` times the volume's largest target value.
    Banding is streaks along x in the third column and along y in the fourth.
    """
    rows: list[Row] = []
    for item in slices:
        white = item.data_range * window
        pictures = {
            "target": grey(item.target, 0, float(item.target.max()) or 1.0),
            "target, low signal": grey(item.target, 0, white),
            "phase encode along x, low signal": grey(item.along_x, 0, white),
            "phase encode along y, low signal": grey(item.along_y, 0, white),
        }
        rows.append((pictures, f"{item.name} slice {item.slice_index}"))
    write_page(path, rows, header)
