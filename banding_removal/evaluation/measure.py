"""Metrics of each slice and volume of a set of reconstructions; `evaluate` summarises them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from banding_removal.data.operators import center_crop
from banding_removal.data.volume import VolumeError
from banding_removal.evaluation.image_sets import ReferenceVolume
from banding_removal.metrics.banding import BandingOfSlice, RegionBanding, banding_of_slice
from banding_removal.metrics.image_quality import LOG_SIZE, WINDOW, VolumeQuality, hfen
from banding_removal.metrics.probe import VolumeProbe
from banding_removal.metrics.probe_classifier import View
from banding_removal.metrics.slice_pair import SlicePair
from banding_removal.metrics.statistics import REGIONS, BandingSummary, summarize

QUALITY = ("nmse", "psnr", "ssim", "mse", "hfen")
OF_SLICE = ("contribution", "power", "signed_excess")
OF_PAIR = (*OF_SLICE, "along", "across")
SINGLE_SUMMARY = ("contribution", "signed_excess")
PAIR_SUMMARY = (*SINGLE_SUMMARY, "along", "across", "auc")
PROBES: dict[str, View] = {"probe": "image", "probe_low_signal": "low_signal"}  # by name
PROBE = ("balanced_accuracy", "auc", "paired")
SCALE_TOLERANCE = 1.2  # a factor beyond which images are in another unit than the target


@dataclass(frozen=True, kw_only=True)
class SliceResult:
    """One slice: all metrics by name; reasons by region (`low_signal`, `single.low_signal`)."""

    volume: str
    slice_index: int
    metrics: dict[str, float]
    reasons: dict[str, str]
    banding: BandingOfSlice | None  # None with one orientation
    single: BandingOfSlice  # from phase encoding along x alone: weaker


@dataclass(frozen=True, kw_only=True)
class VolumeResult:
    """One volume: image quality, least-squares scale factor, banding and probes, by name."""

    reference: ReferenceVolume
    slices: tuple[SliceResult, ...]
    metrics: dict[str, float]
    probes: dict[str, VolumeProbe]  # by name, see PROBES


@dataclass(kw_only=True)
class VolumeSums:
    """What is added up over the slices of a volume."""

    reference: ReferenceVolume
    x: VolumeQuality
    y: VolumeQuality
    slices: list[SliceResult] = field(default_factory=list)
    target_by_image: float = 0.0  # sum of t r over both orientations
    image_energy: float = 0.0  # sum of r^2
    transposed_error: float = 0.0  # of r_y's transpose; less than r_y's if that is not upright
    paired: int = 0
    identical: int = 0

    @classmethod
    def of(cls, reference: ReferenceVolume) -> "VolumeSums":
        """Empty sums."""
        # float32, as in a batch: the metrics equal validation's to the last digit
        data_range = float(np.float32(reference.data_range))
        return cls(
            reference=reference,
            x=VolumeQuality(data_range=data_range),
            y=VolumeQuality(data_range=data_range),
        )

    def add(self, images: SlicePair) -> None:
        """Measure a slice, as `cropped` returns it."""
        r_x, r_y, target = images.along_x, images.along_y, images.target

        def banding_with(other: Tensor | None) -> BandingOfSlice:
            return banding_of_slice(
                r_x,
                other,
                target,
                scale=self.reference.scale,
                volume=images.name,
                slice_index=images.slice_index,
            )

        metrics, reasons = self._quality(r_x, target, ""), dict[str, str]()
        metrics |= self._quality(r_y, target, "_y")
        single, banding = banding_with(None), None
        if r_y is not None:
            self.paired += 1
            self.identical += torch.equal(r_x, r_y)
            banding = banding_with(r_y)
        for prefix, item, names in (("", banding, OF_PAIR), ("single.", single, OF_SLICE)):
            for region in REGIONS:
                measured: RegionBanding | None = getattr(item, region, None)
                key = f"{prefix}{region}"
                reasons[key] = images.why_no_along_y if measured is None else measured.reason
                metrics |= {f"{key}.{name}": getattr(measured, name, math.nan) for name in names}
        self.slices.append(
            SliceResult(
                volume=images.name,
                slice_index=images.slice_index,
                metrics=metrics,
                reasons=reasons,
                banding=banding,
                single=single,
            )
        )

    def _quality(self, image: Tensor | None, target: Tensor, suffix: str) -> dict[str, float]:
        """Quality of one orientation (suffix "_y": along y), added to the sums; NaN of none."""
        if image is None:
            return {f"{name}{suffix}": math.nan for name in QUALITY}
        r, t = image.double(), target.double()
        self.target_by_image += float((r * t).sum())
        self.image_energy += float(r.square().sum())
        if suffix and r.shape[0] == r.shape[1]:
            self.transposed_error += float((r.T - t).square().sum())
        quality = self.y if suffix else self.x
        pair = (image[None, None], target[None, None])
        found = vars(quality.add(*pair, torch.tensor([quality.data_range])))
        large_enough = min(target.shape) >= LOG_SIZE
        found = {**found, "hfen": float(hfen(*pair)) if large_enough else math.nan}
        return {f"{name}{suffix}": value for name, value in found.items()}

    @property
    def scale_factor(self) -> float:
        """The factor that brings the images nearest to the target (least squares)."""
        return self.target_by_image / self.image_energy if self.image_energy > 0 else math.nan

    def result(self, probes: Mapping[str, VolumeProbe]) -> VolumeResult:
        """The metrics of the volume, with those of the probes on it."""
        metrics = {"scale_factor": self.scale_factor}
        for suffix, quality in (("", self.x), ("_y", self.y)):
            found = vars(quality.result()) if quality.slices else {}
            metrics |= {f"{name}{suffix}": found.get(name, math.nan) for name in QUALITY}
            metrics[f"hfen{suffix}"] = _mean_of_known(
                [item.metrics[f"hfen{suffix}"] for item in self.slices]
            )
        # Only the values are needed, not the intervals: one draw.
        pairs = summarize([s.banding for s in self.slices if s.banding], resamples=1)
        singles = summarize([s.single for s in self.slices], resamples=1)
        for region in REGIONS:
            metrics |= _values(pairs, region, "", PAIR_SUMMARY)
            metrics |= _values(singles, region, "single.", SINGLE_SUMMARY)
        for probe in PROBES:
            found_here = probes.get(probe)
            metrics |= {f"{probe}.{name}": getattr(found_here, name, math.nan) for name in PROBE}
        return VolumeResult(
            reference=self.reference,
            slices=tuple(self.slices),
            metrics=metrics,
            probes=dict(probes),
        )


def _values(
    summary: BandingSummary, region: str, prefix: str, names: Sequence[str]
) -> dict[str, float]:
    found = getattr(summary, region)
    return {f"{prefix}{region}.{name}": getattr(found, name).value for name in names}


def _mean_of_known(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def cropped(images: SlicePair, set_name: str) -> SlicePair:
    """The images, checked and cropped to the smallest height and width of target and images.

    Raises:
        ValueError: they are not real (h, w), or along_x and along_y differ in shape.
        FloatingPointError: an image is not finite.
        VolumeError: images are too small for SSIM.
    """
    where = f"set {set_name!r}: {images.name} slice {images.slice_index}"
    named = {"target": images.target, "along x": images.along_x}
    if images.along_y is not None:
        named["along y"] = images.along_y
        if images.along_y.shape != images.along_x.shape:
            along_x, along_y = (tuple(i.shape) for i in (images.along_x, images.along_y))
            raise ValueError(f"{where}: {along_x} along x, {along_y} along y")
    for name, image in named.items():
        if image.ndim != 2 or image.is_complex():
            raise ValueError(f"{where}: {name} is {image.dtype} {tuple(image.shape)}, not (h, w)")
        if not image.isfinite().all():
            raise FloatingPointError(f"{where}: the image {name} is not finite")
    height, width = (min(image.shape[axis] for image in named.values()) for axis in (0, 1))
    if min(height, width) < WINDOW:
        raise VolumeError(f"{where}: images of {height} x {width} are too small for SSIM")
    part = [center_crop(image.float().cpu(), (height, width)) for image in named.values()]
    return replace(
        images,
        target=part[0],
        along_x=part[1],
        along_y=part[2] if images.along_y is not None else None,
        why_no_along_y=images.why_no_along_y
        or ("" if images.along_y is not None else "one orientation only"),
    )


def scale_factor(sums: Mapping[str, VolumeSums]) -> float:
    """Least-squares factor of a whole set; NaN where its images are all zero."""
    energy = sum(part.image_energy for part in sums.values())
    return sum(part.target_by_image for part in sums.values()) / energy if energy else math.nan


def warnings_of(sums: Mapping[str, VolumeSums]) -> Iterator[str]:
    """Mistakes that metrics would hide: another unit, copies as pairs, images not upright."""
    whole = scale_factor(sums)
    factors = [whole, *(part.scale_factor for part in sums.values())]
    if not all(1 / SCALE_TOLERANCE <= factor <= SCALE_TOLERANCE for factor in factors):
        low, high = min(factors[1:]), max(factors[1:])
        yield (
            "the images are in another unit than the targets, or poor: a factor of "
            f"{whole:.4g} ({low:.4g} to {high:.4g} by volume) brings them nearest; nothing was "
            "rescaled"
        )
    paired = sum(part.paired for part in sums.values())
    if paired and paired == sum(part.identical for part in sums.values()):
        yield "the images of both orientations are identical: they cannot show banding"
    transposed = sum(part.transposed_error for part in sums.values())
    error = sum(part.y.error for part in sums.values())
    if 0 < transposed < error:
        yield "the images along y look transposed: both orientations must be upright"
