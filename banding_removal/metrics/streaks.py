"""Energy of streaks along either axis, in the flat low-signal pixels of an image.

With M the pixels of `low_signal_regions`, b_x a box average over 9 pixels along x (the last axis)
and h_y = [-1/2, 1, -1/2] / sqrt(3/2) along y (`filters.streak_filter`):

    E_h(r) = mean over M of (h_y * b_x * r)^2       E_v(r): the same of the transposed image
    rho(r) = 10 log10(E_h(r) / E_v(r))

E_h is the energy of streaks along x: where these are white across, E_h is their mean square and E_v
is about 0. White noise of variance s^2 has E_h = E_v = s^2 / 9.

All widths are in pixels, for any matrix. Streaks of banding are one pixel thick, because readout
is fully sampled up to the matrix's highest frequency, and about W / acs_lines pixels long: 10 to 23
in common protocols. Of the energy of noise in the central lines alone, the box of 9 passes 80 % at
96 (10 lines), 85 % at 128 (12) and 96 % at 320 (14); a box of 17 would pass 53 %, 58 % and 86 %.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from banding_removal.metrics.filters import streak_filter
from banding_removal.metrics.low_signal import BORDER, Image, as_real, inner_regions, unit

BOX = 2 * BORDER + 1  # pixels averaged along a streak
# With fewer pixels the ratio is mostly chance: on white noise, half the difference of two has a
# standard deviation of 1.3 dB at 225 pixels, 0.6 dB at 1,000, 0.3 dB at 4,000.
MIN_PIXELS = 200


class StreakEnergy(NamedTuple):
    """Mean square of streaks in a region of an image, in units of q^2."""

    h: float  # along x (horizontal)
    v: float  # along y (vertical)

    @property
    def ratio(self) -> float:
        """The ratio rho = 10 log10(E_h / E_v) in dB; NaN unless both are positive."""
        return decibel(self.h, self.v)


class RegionEnergies(NamedTuple):
    """Streak energies in one region of one slice."""

    pixels: int
    reason: str  # why the region is not measurable (energies are NaN then); empty where it is
    energies: dict[str, StreakEnergy]  # by the name of the image; the target is "target"


class SliceEnergies(NamedTuple):
    """Streak energies in one slice."""

    scale: float  # q, in the images' unit
    low_signal: RegionEnergies
    background: RegionEnergies
    anatomy: RegionEnergies


@torch.no_grad()
def streak_energies(
    images: Mapping[str, Image],
    target: Image,
    scale: float | None = None,
    *,
    target_needs_ratio: bool = False,
) -> SliceEnergies:
    """Energies of streaks in reconstructions of a slice and in its target, by region.

    Computed in float64, with one transfer from the device.

    Args:
        images: reconstructions by name, real (h, w), arrays or tensors.
        target: like each of `images`.
        scale: q; None: the slice's own.
        target_needs_ratio: whether a region is measurable only if the target, too, has a rho.

    Returns:
        The energies. A region is not measurable where an image is not finite, q is not positive,
        fewer than `MIN_PIXELS` pixels are left, or an image that needs a rho has E_h or E_v = 0.

    Raises:
        ValueError: shapes, devices or types do not fit.
    """
    names = (*images, "target")
    stack = _stack({**images, "target": target})  # (image, h, w)
    q = unit(stack[-1], scale)
    finite = stack.isfinite().all(dim=-1).all(dim=-1)  # (image,)
    stack = stack / q
    regions = inner_regions(stack[-1:])[:, 0].to(stack.dtype)  # (region, y, x)
    energy = _filtered(stack).square()  # (h or v, image, y, x)
    pixels = regions.sum(dim=(-2, -1))
    means = torch.einsum("siyx,ryx->ris", energy, regions) / pixels[:, None, None]

    row = torch.cat([q[None], finite, pixels, means.flatten()]).cpu().tolist()
    return _unpack(row, names, target_needs_ratio)


def _unpack(row: Sequence[float], names: Sequence[str], target_needs_ratio: bool) -> SliceEnergies:
    """A slice from its row: q, a flag for each image, pixels of each region, energies by region."""
    images = len(names)
    q, finite, counts = row[0], row[1 : 1 + images], row[1 + images : 4 + images]
    values = iter(row[4 + images :])
    of_slice = ""
    if not all(finite):
        bad = [name for name, good in zip(names, finite, strict=True) if not good]
        of_slice = f"{', '.join(bad)} not finite"
    elif not q > 0:
        of_slice = "scale not positive"

    regions = []
    for count in counts:
        energies = {name: StreakEnergy(next(values), next(values)) for name in names}
        needed = names if target_needs_ratio else names[:-1]
        constant = [name for name in needed if math.isnan(energies[name].ratio)]
        reason = of_slice
        if not reason and count < MIN_PIXELS:
            reason = f"fewer than {MIN_PIXELS} pixels"
        elif not reason and constant:
            reason = f"{', '.join(constant)} constant along an axis"
        if reason:
            energies = dict.fromkeys(names, StreakEnergy(math.nan, math.nan))
        regions.append(RegionEnergies(int(count), reason, energies))
    return SliceEnergies(q, *regions)


def decibel(numerator: float, denominator: float) -> float:
    """10 log10(numerator / denominator); NaN unless both are positive."""
    if not (numerator > 0 and denominator > 0):
        return math.nan
    return 10 * (math.log10(numerator) - math.log10(denominator))


def signed_rms_percent(power: float) -> float:
    """100 sign(power) sqrt(|power|); NaN stays NaN."""
    return math.copysign(100 * math.sqrt(abs(power)), power)


def _filtered(images: Tensor) -> Tensor:
    """Streaks along x and y: (image, h, w) -> (2, image, h - 8, w - 8), empty if too small."""
    if min(images.shape[-2:]) <= 2 * BORDER:
        return images.new_zeros((2, len(images), 0, 0))
    along_x = streak_filter(images, BOX, BORDER)
    along_y = streak_filter(images.mT, BOX, BORDER).mT
    return torch.stack([along_x, along_y])


def _stack(images: Mapping[str, Image]) -> Tensor:
    """All images as one float64 tensor (image, h, w), after checks."""
    tensors = {name: as_real(name, image) for name, image in images.items()}
    first, reference = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor.ndim != 2:
            raise ValueError(f"{name} must be (h, w), not {tuple(tensor.shape)}")
        if tensor.shape != reference.shape:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)}, but {first} is {tuple(reference.shape)}"
            )
        if tensor.device != reference.device:
            raise ValueError(f"{name} is on {tensor.device}, but {first} on {reference.device}")
    return torch.stack(list(tensors.values()))
