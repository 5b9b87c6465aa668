"""Banding from one orientation only, against the target: weaker than the pair of `banding`.

For data that cannot be undersampled along either axis. With the streak energies of `streaks`, r the
reconstruction with phase encoding along x, t the target:

    contribution  rho(r) - rho(t)                                                            in dB
    power         [(E_h - E_v)(r) - (E_h - E_v)(t)] / q^2
    excess        100 sqrt(max(0, power)), in % of q

Anatomy and noise do not cancel fully: blurring the target, without any banding, gives figures other
than 0. The target has noise that the reconstruction has not, so the spread is larger, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from banding_removal.metrics.low_signal import Image, Scale
from banding_removal.metrics.streaks import (
    RegionEnergies,
    SliceEnergies,
    StreakEnergy,
    require_axes,
    rms_percent,
    signed_rms_percent,
    streak_energies,
)


@dataclass(frozen=True, kw_only=True)
class SingleRegionBanding:
    """Banding in one region of one reconstruction against its target: weaker than the pair."""

    pixels: int
    reason: str  # why it is not measurable; empty where it is
    reconstruction: StreakEnergy
    target: StreakEnergy

    @classmethod
    def of(cls, region: RegionEnergies) -> "SingleRegionBanding":
        """From the energies of reconstruction, target."""
        r, t = region.energies
        return cls(pixels=region.pixels, reason=region.reason, reconstruction=r, target=t)

    @property
    def contribution(self) -> float:
        """Estimate of B from one orientation, rho(r) - rho(t), in dB."""
        return self.reconstruction.ratio - self.target.ratio

    @property
    def power(self) -> float:
        """(E_h - E_v)(r) - (E_h - E_v)(t), in units of q^2."""
        r, t = self.reconstruction, self.target
        return (r.h - r.v) - (t.h - t.v)

    @property
    def excess(self) -> float:
        """Rms amplitude of the streaks in % of q, 0 where the power is negative."""
        return rms_percent(self.power)

    @property
    def signed_excess(self) -> float:
        """Like the excess, but negative where the power is."""
        return signed_rms_percent(self.power)


@dataclass(frozen=True, kw_only=True)
class SingleBandingOfSlice:
    """`single_banding_of_slice` of one slice."""

    volume: str
    slice_index: int
    scale: float  # q, in the images' unit
    low_signal: SingleRegionBanding  # the two below together
    background: SingleRegionBanding  # less signal than noise
    anatomy: SingleRegionBanding

    @classmethod
    def of(cls, energies: SliceEnergies, volume: str, slice_index: int) -> "SingleBandingOfSlice":
        """From the energies of a slice."""
        return cls(
            volume=volume,
            slice_index=slice_index,
            scale=energies.scale,
            low_signal=SingleRegionBanding.of(energies.low_signal),
            background=SingleRegionBanding.of(energies.background),
            anatomy=SingleRegionBanding.of(energies.anatomy),
        )


def single_banding_of_slice(
    reconstruction: Image,
    target: Image,
    *,
    scale: float | None = None,
    volume: str = "",
    slice_index: int = 0,
) -> SingleBandingOfSlice:
    """Weaker figures from one orientation: rho(r) - rho(t), (E_h - E_v)(r) - (E_h - E_v)(t).

    For data that exist in one orientation only. Anatomy and noise do not cancel fully: blurring
    the target, without any banding, gives figures other than 0. Use `banding_of_slice` wherever
    the slice can be undersampled along either axis.

    Args:
        reconstruction: like `r_x` of `banding_of_slice`; where phase encoding is along y, give the
            transposes of both images.
        target: like `reconstruction`.
        scale: q, see `banding_of_slice`.
        volume: name of the volume, for the summary.
        slice_index: position in the volume, for the summary.

    Returns:
        Figures of each region, NaN with a reason as in `banding_of_slice`; a target that
        is constant along an axis is one more.

    Raises:
        ValueError: shapes, devices or types do not fit.
    """
    require_axes(2, {"reconstruction": reconstruction, "target": target})
    images = {"reconstruction": reconstruction}
    (energies,) = streak_energies(images, target, scale, rho_of_target=True)
    return SingleBandingOfSlice.of(energies, volume, slice_index)


def single_banding_of_slices(
    reconstruction: Image,
    target: Image,
    *,
    volumes: Sequence[str],
    slice_indices: Sequence[int],
    scale: Scale = None,
) -> list[SingleBandingOfSlice]:
    """`single_banding_of_slice` of each slice of a batch (B, h, w), B names and positions."""
    require_axes(3, {"reconstruction": reconstruction, "target": target})
    images = {"reconstruction": reconstruction}
    batch = streak_energies(images, target, scale, rho_of_target=True)
    labelled = zip(batch, volumes, slice_indices, strict=True)
    return [SingleBandingOfSlice.of(*item) for item in labelled]
