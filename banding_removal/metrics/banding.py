"""Banding of a slice, from its reconstructions with phase encoding along x and along y.

    slices = [banding_of_slice(r_x, r_y, target, scale=q, volume=name, slice_index=i), ...]
    summarize(slices).low_signal.contribution    # `metrics.statistics`: dB, with its interval

r_x and r_y are the same slice, undersampled along x (the last axis, as it was acquired) and along
y, both upright; t is the target and q its volume's 99.5th percentile (`volume_scale`). Banding lies
along the phase encode axis: along x in r_x, along y in r_y. Anatomy and noise are the same in both
and cancel. With the streak energies E_h (along x), E_v (along y) and rho = 10 log10(E_h / E_v) of
`streaks`, over the flat low-signal pixels of the target (`low_signal`):

    contribution  B = (rho(r_x) - rho(r_y)) / 2                                              in dB
    power         P = [(E_h - E_v)(r_x) + (E_v - E_h)(r_y)] / (2 q^2)
    excess        100 sqrt(max(0, P)), in % of q: the rms amplitude of the streaks
    along         10 log10((E_h(r_x) + E_v(r_y)) / (E_h(t) + E_v(t)))                        in dB
    across        10 log10((E_v(r_x) + E_h(r_y)) / (E_h(t) + E_v(t)))                        in dB

No single one is enough: added noise lowers B but not the excess; blur lowers the excess far more
than B; texture added in the other direction lowers both, but raises `across`. Read them together.
`python -m benchmarks.banding_checks` shows it where the truth is known.

Only PyTorch and NumPy are needed; nothing here knows of this project's trainer or predictor.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from banding_removal.metrics.low_signal import Image, Scale
from banding_removal.metrics.streaks import (
    RegionEnergies,
    SliceEnergies,
    StreakEnergy,
    decibel,
    require_axes,
    rms_percent,
    signed_rms_percent,
    streak_energies,
)


@dataclass(frozen=True, kw_only=True)
class RegionBanding:
    """Banding in one region of one slice; every figure is NaN where `reason` is not empty."""

    pixels: int
    reason: str  # why it is not measurable; empty where it is
    r_x: StreakEnergy
    r_y: StreakEnergy
    target: StreakEnergy

    @classmethod
    def of(cls, region: RegionEnergies) -> "RegionBanding":
        """From the energies of r_x, r_y, target."""
        r_x, r_y, target = region.energies
        return cls(pixels=region.pixels, reason=region.reason, r_x=r_x, r_y=r_y, target=target)

    @property
    def contribution(self) -> float:
        """B in dB: 0 without banding, negative where streaks lie across the phase encode axis."""
        return (self.r_x.ratio - self.r_y.ratio) / 2

    @property
    def power(self) -> float:
        """P, in units of q^2: mean square of the streaks, negative where they lie across."""
        return ((self.r_x.h - self.r_x.v) + (self.r_y.v - self.r_y.h)) / 2

    @property
    def excess(self) -> float:
        """Rms amplitude of the streaks in % of q, 0 where P is negative."""
        return rms_percent(self.power)

    @property
    def signed_excess(self) -> float:
        """Like the excess, but negative where P is: an over-corrected slice."""
        return signed_rms_percent(self.power)

    @property
    def along(self) -> float:
        """Streaks in the banding direction over the target's, in dB; NaN if it has no texture."""
        return decibel(self.r_x.h + self.r_y.v, self.target.h + self.target.v)

    @property
    def across(self) -> float:
        """Streaks across the banding direction over the target's, in dB; NaN like `along`."""
        return decibel(self.r_x.v + self.r_y.h, self.target.h + self.target.v)


@dataclass(frozen=True, kw_only=True)
class BandingOfSlice:
    """Banding of one slice: plain floats that can be pickled, gathered and summarised."""

    volume: str
    slice_index: int
    scale: float  # q, in the images' unit
    low_signal: RegionBanding  # the two below together
    background: RegionBanding  # less signal than noise
    anatomy: RegionBanding

    @classmethod
    def of(cls, energies: SliceEnergies, volume: str, slice_index: int) -> "BandingOfSlice":
        """From the energies of a slice."""
        return cls(
            volume=volume,
            slice_index=slice_index,
            scale=energies.scale,
            low_signal=RegionBanding.of(energies.low_signal),
            background=RegionBanding.of(energies.background),
            anatomy=RegionBanding.of(energies.anatomy),
        )


def banding_of_slice(
    r_x: Image,
    r_y: Image,
    target: Image,
    *,
    scale: float | None = None,
    volume: str = "",
    slice_index: int = 0,
) -> BandingOfSlice:
    """Banding figures of one slice, from a pair of reconstructions.

    Args:
        r_x: real (h, w), array or tensor on any device, in any unit; phase encoded along x, the
            last axis.
        r_y: like `r_x`, phase encoded along y, upright.
        target: like `r_x`.
        scale: q in the images' unit, best the volume's (`low_signal.volume_scale`). None: the
            slice's own, with which the empty slices at the ends of a volume are not measurable.
        volume: name of the volume, for the summary.
        slice_index: position in the volume, for the summary.

    Returns:
        Figures of each region. A region is not measurable, for the `reason` given there and with
        NaN in every figure, where an image of the slice is not finite, q is not positive, fewer
        than 200 pixels are left, or a reconstruction is constant along an axis.

    Raises:
        ValueError: shapes, devices or types do not fit.
    """
    require_axes(2, {"r_x": r_x, "r_y": r_y, "target": target})
    (energies,) = streak_energies({"r_x": r_x, "r_y": r_y}, target, scale)
    return BandingOfSlice.of(energies, volume, slice_index)


def banding_of_slices(
    r_x: Image,
    r_y: Image,
    target: Image,
    *,
    volumes: Sequence[str],
    slice_indices: Sequence[int],
    scale: Scale = None,
) -> list[BandingOfSlice]:
    """`banding_of_slice` of each slice of a batch, images (B, h, w), B names and positions."""
    require_axes(3, {"r_x": r_x, "r_y": r_y, "target": target})
    batch = streak_energies({"r_x": r_x, "r_y": r_y}, target, scale)
    labelled = zip(batch, volumes, slice_indices, strict=True)
    return [BandingOfSlice.of(*item) for item in labelled]
