"""Image quality of whole volumes: NMSE, PSNR, SSIM, as fastMRI reports them."""

import math
from dataclasses import dataclass

from torch import Tensor

from banding_removal.losses import ssim


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Figures of a slice or a volume; NMSE is NaN where the target is all zero."""

    nmse: float
    psnr: float  # dB
    ssim: float
    mse: float


@dataclass(kw_only=True)
class VolumeQuality:
    """Sums over the slices of one volume, from which its figures follow.

    With t the target, x the reconstruction, L the data range of the volume:
    NMSE = sum (x - t)^2 / sum t^2, PSNR = 10 log10(L^2 / mean (x - t)^2), SSIM = mean over slices.
    Only sums are kept, so memory does not grow with the volume, and parts computed by several
    processes add up exactly.
    """

    data_range: float
    error: float = 0.0
    energy: float = 0.0
    pixels: int = 0
    ssim: float = 0.0
    slices: int = 0

    def add(self, prediction: Tensor, target: Tensor, data_range: Tensor) -> Quality:
        """Add one slice, real (1, 1, h, w) each and (1,); its own figures are returned."""
        x, t = prediction.double(), target.double()
        part = VolumeQuality(
            data_range=self.data_range,
            error=float((x - t).square().sum()),
            energy=float(t.square().sum()),
            pixels=t.numel(),
            ssim=float(ssim(x, t, data_range.double())),
            slices=1,
        )
        for name in ("error", "energy", "pixels", "ssim", "slices"):
            setattr(self, name, getattr(self, name) + getattr(part, name))
        return part.result()

    def result(self) -> Quality:
        """The figures of all slices so far."""
        mse = self.error / self.pixels
        return Quality(
            nmse=self.error / self.energy if self.energy > 0 else math.nan,
            psnr=10 * math.log10(self.data_range**2 / mse) if mse > 0 else math.inf,
            ssim=self.ssim / self.slices,
            mse=mse,
        )
