"""The record of a slice in both orientations: what is measured, shown and trained on.

It lives below the rooms that make it (`reconstruction`), measure it (`evaluation`, `training`) and
show it (`pictures`).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class SlicePair:
    """A slice reconstructed with phase encoding along x and along y.

    Images are real (h, w), upright, on one device, and in the unit of the target.
    """

    name: str  # of the volume's file
    slice_index: int
    acquisition: str
    data_range: float  # largest target value of the volume
    scale: float  # q, the 99.5th percentile of the volume's target: the unit of banding
    target: Tensor
    along_x: Tensor  # phase encoding along x, the last axis, as it was acquired
    along_y: Tensor | None  # k-space transposed before undersampling, the image transposed back
    why_no_along_y: str = ""

    def to(self, device: torch.device) -> "SlicePair":
        """The pair with its images on `device`."""
        return replace(
            self,
            target=self.target.to(device),
            along_x=self.along_x.to(device),
            along_y=None if self.along_y is None else self.along_y.to(device),
        )
