"""Banding of a slice, from its reconstructions with phase encoding along x and along y.

    slices = [banding_of_slice(r_x, r_y, target, scale=q, volume=name, slice_index=i), ...]
    summarize(slices).low_signal.contribution    # `metrics.statistics`: dB, with its interval

r_x and r_y are the same slice, undersampled along x (the last axis, as it was acquired) and along
y, both upright; t is the target and q its volume's 99.5th percentile (`volume_scale`). Banding lies
along the phase-encode axis: along x in r_x, along y in r_y. Anatomy and noise are the same in both
and cancel. With the energies E_h and E_v of streaks along x and along y and their ratio
rho = 10 log10(E_h / E_v) (`streaks`), over the flat low-signal pixels of the target (`low_signal`):

    contribution   B = (rho(r_x) - rho(r_y)) / 2                                             in dB
    power          P = [(E_h - E_v)(r_x) - (E_h - E_v)(r_y)] / (2 q^2)
    signed excess  100 sign(P) sqrt(|P|), in % of q: the rms amplitude of the streaks
    along          10 log10((E_h(r_x) + E_v(r_y)) / (E_h(t) + E_v(t)))                       in dB
    across         10 log10((E_v(r_x) + E_h(r_y)) / (E_h(t) + E_v(t)))                       in dB

B and the signed excess are 0 without banding. Negative values mean that streaks lie across the
phase-encode axis: the image is over-corrected, which is as wrong as banding.

No single metric is enough: added noise lowers B but not the excess; blur lowers the excess far more
than B; texture added in the other direction lowers both, but raises `across`. Read them together.
`python -m benchmarks.banding_checks` shows this on pairs with streaks of known strength.

Where a slice exists in one orientation only, the target takes the place of r_y:

    contribution   rho(r_x) - rho(t)                                                         in dB
    power          [(E_h - E_v)(r_x) - (E_h - E_v)(t)] / q^2

This is weaker, because anatomy and noise do not cancel fully: a blurred target, without any
banding, has values other than 0, and the target's own noise widens the spread. `along` and `across`
need both orientations.

Only PyTorch and NumPy are needed; nothing here depends on this project's trainer or predictor.
"""

import math
from dataclasses import dataclass

from banding_removal.metrics.low_signal import Image
from banding_removal.metrics.streaks import (
    RegionEnergies,
    StreakEnergy,
    decibel,
    signed_rms_percent,
    streak_energies,
)


@dataclass(frozen=True, kw_only=True)
class RegionBanding:
    """Banding in one region of one slice; all metrics are NaN where `reason` is not empty."""

    pixels: int
    reason: str  # why the region is not measurable; empty where it is
    r_x: StreakEnergy
    r_y: StreakEnergy | None  # None: one orientation only
    target: StreakEnergy

    @classmethod
    def of(cls, region: RegionEnergies) -> "RegionBanding":
        """From the energies of r_x, r_y (if there is one) and target."""
        found = region.energies
        return cls(
            pixels=region.pixels,
            reason=region.reason,
            r_x=found["r_x"],
            r_y=found.get("r_y"),
            target=found["target"],
        )

    @property
    def contribution(self) -> float:
        """B in dB."""
        if self.r_y is None:
            return self.r_x.ratio - self.target.ratio
        return (self.r_x.ratio - self.r_y.ratio) / 2

    @property
    def power(self) -> float:
        """P, in units of q^2: the mean square of the streaks; negative where they lie across."""
        if self.r_y is None:
            return (self.r_x.h - self.r_x.v) - (self.target.h - self.target.v)
        return ((self.r_x.h - self.r_x.v) + (self.r_y.v - self.r_y.h)) / 2

    @property
    def signed_excess(self) -> float:
        """Rms amplitude of the streaks in % of q; negative where the slice is over-corrected."""
        return signed_rms_percent(self.power)

    @property
    def along(self) -> float:
        """Streaks along phase encode over the target's, in dB; NaN if that has no texture."""
        if self.r_y is None:
            return math.nan
        return decibel(self.r_x.h + self.r_y.v, self.target.h + self.target.v)

    @property
    def across(self) -> float:
        """Streaks across phase encode over the target's, in dB; NaN like `along`."""
        if self.r_y is None:
            return math.nan
        return decibel(self.r_x.v + self.r_y.h, self.target.h + self.target.v)


@dataclass(frozen=True, kw_only=True)
class BandingOfSlice:
    """Banding of one slice: plain floats that can be pickled, gathered and summarised."""

    volume: str
    slice_index: int
    scale: float  # q, in the images' unit
    low_signal: RegionBanding  # background and anatomy together
    background: RegionBanding  # less signal than noise
    anatomy: RegionBanding


def banding_of_slice(
    r_x: Image,
    r_y: Image | None,
    target: Image,
    *,
    scale: float | None = None,
    volume: str = "",
    slice_index: int = 0,
) -> BandingOfSlice:
    """Banding of one slice, from a pair of reconstructions or, weaker, from one of them.

    Args:
        r_x: real (h, w), array or tensor on any device, in any unit; phase encoded along x, the
            last axis.
        r_y: like `r_x`, phase encoded along y, upright. None: the slice exists in one orientation
            only. (Where that is along y, give the transposes of reconstruction and target.)
        target: like `r_x`.
        scale: q in the images' unit, best the volume's (`low_signal.volume_scale`). None: the
            slice's own, with which the empty slices at the ends of a volume are not measurable.
        volume: name of the volume, for the summary.
        slice_index: position in the volume, for the summary.

    Returns:
        Banding in each region. A region is not measurable (all its metrics are NaN, `reason` says
        why) where an image is not finite, q is not positive, fewer than 200 pixels are left, or a
        reconstruction (with one orientation: or the target) is constant along an axis.

    Raises:
        ValueError: shapes, devices or types do not fit.
    """
    images = {"r_x": r_x} if r_y is None else {"r_x": r_x, "r_y": r_y}
    energies = streak_energies(images, target, scale, target_needs_ratio=r_y is None)
    return BandingOfSlice(
        volume=volume,
        slice_index=slice_index,
        scale=energies.scale,
        low_signal=RegionBanding.of(energies.low_signal),
        background=RegionBanding.of(energies.background),
        anatomy=RegionBanding.of(energies.anatomy),
    )
