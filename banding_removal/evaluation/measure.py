"""Figures of one slice and of one volume of a set of reconstructions; `evaluate` adds them up."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from banding_removal.data.operators import center_crop
from banding_removal.data.volume import VolumeError
from banding_removal.evaluation.image_sets import ReferenceVolume, SliceImages
from banding_removal.metrics.banding import BandingOfSlice, banding_of_slice
from banding_removal.metrics.image_quality import LOG_SIZE, WINDOW, VolumeQuality, hfen
from banding_removal.metrics.probe import VolumeFigures
from banding_removal.metrics.single_banding import SingleBandingOfSlice, single_banding_of_slice
from banding_removal.metrics.statistics import summarize, summarize_single

REGIONS = ("low_signal", "background", "anatomy")
QUALITY = ("nmse", "psnr", "ssim", "mse", "hfen")
OF_SLICE = ("contribution", "power", "excess", "signed_excess")
OF_PAIR = (*OF_SLICE, "along", "across")
SINGLE_SUMMARY = ("contribution", "excess", "signed_excess")
PAIR_SUMMARY = (*SINGLE_SUMMARY, "along", "across", "auc")
PROBE = ("balanced_accuracy", "auc", "paired")
SCALE_TOLERANCE = 1.2  # a factor beyond which images are in another unit than the target


@dataclass(frozen=True, kw_only=True)
class SliceResult:
    """One slice: all figures by name; reasons by region (`low_signal`, `single.low_signal`)."""

    volume: str
    slice_index: int
    figures: dict[str, float]
    reasons: dict[str, str]
    banding: BandingOfSlice | None  # None with one orientation
    single: SingleBandingOfSlice


@dataclass(frozen=True, kw_only=True)
class VolumeResult:
    """One volume: image quality, least-squares scale factor, banding and probe, by name."""

    reference: ReferenceVolume
    slices: tuple[SliceResult, ...]
    figures: dict[str, float]
    probe: VolumeFigures | None


@dataclass(kw_only=True)
class VolumeSums:
    """What is added up over the slices of a volume."""

    reference: ReferenceVolume
    x: VolumeQuality
    y: VolumeQuality
    slices: list[SliceResult] = field(default_factory=list)
    target_by_image: float = 0.0  # sum of t r over both orientations
    image_energy: float = 0.0  # sum of r^2
    turned_error: float = 0.0  # of r_y, were it not upright
    paired: int = 0
    identical: int = 0

    @classmethod
    def of(cls, reference: ReferenceVolume) -> "VolumeSums":
        """Empty sums."""
        # float32, as a batch has it: the figures are validation's to the last digit
        start = float(np.float32(reference.data_range))
        return cls(
            reference=reference,
            x=VolumeQuality(data_range=start),
            y=VolumeQuality(data_range=start),
        )

    def add(self, images: SliceImages) -> None:
        """Measure a slice that `cropped` has seen to."""
        target, reasons, figures = images.target, dict[str, str](), dict[str, float]()
        data_range = torch.tensor([self.x.data_range])
        for suffix, image, quality in (("", images.r_x, self.x), ("_y", images.r_y, self.y)):
            if image is None:
                figures |= {f"{name}{suffix}": math.nan for name in QUALITY}
                continue
            found = quality.add(image[None, None], target[None, None], data_range)
            figures |= {f"{name}{suffix}": value for name, value in vars(found).items()}
            figures[f"hfen{suffix}"] = (
                float(hfen(image[None, None], target[None, None]))
                if min(target.shape) >= LOG_SIZE
                else math.nan
            )
            r, t = image.double(), target.double()
            self.target_by_image += float((r * t).sum())
            self.image_energy += float(r.square().sum())
            if suffix and r.shape[0] == r.shape[1]:
                self.turned_error += float((r.T - t).square().sum())
        q = self.reference.scale
        where: dict[str, Any] = {"volume": images.volume, "slice_index": images.slice_index}
        single = single_banding_of_slice(images.r_x, target, scale=q, **where)
        banding = None
        if images.r_y is not None:
            self.paired += 1
            self.identical += torch.equal(images.r_x, images.r_y)
            banding = banding_of_slice(images.r_x, images.r_y, target, scale=q, **where)
        for prefix, item, names in (("", banding, OF_PAIR), ("single.", single, OF_SLICE)):
            for region in REGIONS:
                measured = getattr(item, region, None)
                key = f"{prefix}{region}"
                reasons[key] = images.why_no_r_y if measured is None else measured.reason
                for name in names:
                    figures[f"{key}.{name}"] = getattr(measured, name, math.nan)
        result = SliceResult(
            figures=figures, reasons=reasons, banding=banding, single=single, **where
        )
        self.slices.append(result)

    @property
    def scale_factor(self) -> float:
        """Least squares: times this, the images are nearest to the target."""
        return self.target_by_image / self.image_energy if self.image_energy > 0 else math.nan

    def result(self, probed: VolumeFigures | None) -> VolumeResult:
        """The figures of the volume, with those of the probe on it."""
        figures = {"scale_factor": self.scale_factor}
        for suffix, quality in (("", self.x), ("_y", self.y)):
            found = vars(quality.result()) if quality.slices else {}
            figures |= {f"{name}{suffix}": found.get(name, math.nan) for name in QUALITY}
            figures[f"hfen{suffix}"] = _mean_of_known(
                [item.figures[f"hfen{suffix}"] for item in self.slices]
            )
        # The values alone are wanted: one draw.
        pairs = summarize([s.banding for s in self.slices if s.banding], resamples=1)
        singles = summarize_single([s.single for s in self.slices], resamples=1)
        for region in REGIONS:
            for name in PAIR_SUMMARY:
                figures[f"{region}.{name}"] = getattr(getattr(pairs, region), name).value
            for name in SINGLE_SUMMARY:
                figures[f"single.{region}.{name}"] = getattr(getattr(singles, region), name).value
        for name in PROBE:
            figures[f"probe.{name}"] = getattr(probed, name, math.nan)
        return VolumeResult(
            reference=self.reference, slices=tuple(self.slices), figures=figures, probe=probed
        )


def _mean_of_known(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def cropped(images: SliceImages, set_name: str) -> SliceImages:
    """The images checked, and cropped to the smaller height and width of target and images.

    Raises:
        ValueError: they are not real (h, w), or r_x and r_y differ in shape.
        FloatingPointError: an image is not finite.
        VolumeError: images are too small for SSIM.
    """
    where = f"set {set_name!r}: {images.volume} slice {images.slice_index}"
    named = {"target": images.target, "along x": images.r_x}
    if images.r_y is not None:
        named["along y"] = images.r_y
        if images.r_y.shape != images.r_x.shape:
            raise ValueError(
                f"{where}: {tuple(images.r_x.shape)} along x, {tuple(images.r_y.shape)} along y"
            )
    for name, image in named.items():
        if image.ndim != 2 or image.is_complex():
            raise ValueError(f"{where}: {name} is {image.dtype} {tuple(image.shape)}, not (h, w)")
        if not image.isfinite().all():
            raise FloatingPointError(f"{where}: the image {name} is not finite")
    height, width = (min(image.shape[axis] for image in named.values()) for axis in (0, 1))
    if min(height, width) < WINDOW:
        raise VolumeError(f"{where}: images of {height} x {width} are too small for SSIM")
    part = [center_crop(image.float().cpu(), (height, width)) for image in named.values()]
    return SliceImages(
        volume=images.volume,
        slice_index=images.slice_index,
        target=part[0],
        r_x=part[1],
        r_y=part[2] if images.r_y is not None else None,
        why_no_r_y=images.why_no_r_y or ("" if images.r_y is not None else "one orientation only"),
    )


def scale_factor(sums: Mapping[str, VolumeSums]) -> float:
    """Least-squares factor of a whole set; NaN where its images are all zero."""
    energy = sum(part.image_energy for part in sums.values())
    return sum(part.target_by_image for part in sums.values()) / energy if energy else math.nan


def warnings_of(sums: Mapping[str, VolumeSums]) -> Iterator[str]:
    """Mistakes that figures would hide: another unit, copies for pairs, images not upright."""
    whole = scale_factor(sums)
    factors = [whole, *(part.scale_factor for part in sums.values())]
    if not all(1 / SCALE_TOLERANCE <= factor <= SCALE_TOLERANCE for factor in factors):
        low, high = min(factors[1:]), max(factors[1:])
        yield (
            f"the images are in another unit than the targets: nearest to these times {whole:.4g} "
            f"({low:.4g} to {high:.4g} by volume); nothing was rescaled"
        )
    paired = sum(part.paired for part in sums.values())
    if paired and paired == sum(part.identical for part in sums.values()):
        yield "the images of both orientations are identical: they cannot show banding"
    turned = sum(part.turned_error for part in sums.values())
    error = sum(part.y.error for part in sums.values())
    if 0 < turned < error:
        yield "the images along y look transposed: both orientations must be upright"
