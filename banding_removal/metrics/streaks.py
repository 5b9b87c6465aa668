"""Energy of streaks along either axis in the flat low-signal pixels of images.

The filters, with M the pixels of `low_signal_regions`, b_x a box average over 9 pixels along x (the
last axis), h_y = [-1/2, 1, -1/2] / sqrt(3/2) along y (unit gain for white noise):

    E_h(r) = mean over M of (h_y * b_x * r)^2       E_v(r): its transpose
    rho(r) = 10 log10(E_h(r) / E_v(r))

E_h is the energy of streaks along x: of streaks that are white across, E_h is the mean square and
E_v about 0. White noise of variance s^2 has E_h = E_v = s^2 / 9.

Every width is in pixels, at any matrix. The thickness of banding's streaks is one pixel, because
the readout is fully sampled up to the highest frequency of the matrix; their length is about
W / acs_lines pixels, 10 to 23 in common protocols. Of the energy of noise at the central lines
only, the box of 9 passes 80 % at 96 (10 lines), 85 % at 128 (12) and 96 % at 320 (14); a box of 17
would pass 53 %, 58 % and 86 %.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from banding_removal.metrics.low_signal import BORDER, Image, Scale, as_real, inner_regions, scales

BOX = 2 * BORDER + 1  # pixels averaged along a streak
# With fewer pixels the ratio says nothing: on white noise, half the difference of two has a
# standard deviation of 1.3 dB at 225 pixels, 0.6 dB at 1,000, 0.3 dB at 4,000.
MIN_PIXELS = 200


class StreakEnergy(NamedTuple):
    """Mean square of streaks in a region of an image, in units of q^2."""

    h: float  # along x (horizontal)
    v: float  # along y (vertical)

    @property
    def ratio(self) -> float:
        """The ratio rho = 10 log10(E_h / E_v) in dB, NaN where it has none."""
        return decibel(self.h, self.v)


class RegionEnergies(NamedTuple):
    """What is measured in one region of one slice."""

    pixels: int
    reason: str  # why there are no figures (energies are NaN then); empty where there are
    energies: tuple[StreakEnergy, ...]  # of each reconstruction, then of the target


class SliceEnergies(NamedTuple):
    """What is measured in one slice."""

    scale: float  # q, in the images' unit
    low_signal: RegionEnergies
    background: RegionEnergies
    anatomy: RegionEnergies


@torch.no_grad()
def streak_energies(
    images: Mapping[str, Image], target: Image, scale: Scale = None, *, rho_of_target: bool = False
) -> list[SliceEnergies]:
    """Energies of streaks in reconstructions and target, by region: one transfer from the device.

    Computed in float64.

    Args:
        images: reconstructions by name, real (h, w) or (B, h, w), arrays or tensors.
        target: likewise.
        scale: q, one for all slices or one each; None: each slice's own.
        rho_of_target: whether the target must have a rho, too, for a region to be measurable.

    Returns:
        One item for each slice, one for (h, w). A region is not measurable where an image of the
        slice is not finite, q is not positive, fewer than `MIN_PIXELS` pixels are left, or an
        image whose rho is needed has E_h or E_v equal to zero there.

    Raises:
        ValueError: shapes, devices or types do not fit.
    """
    names = (*images, "target")
    stack = _stack({**images, "target": target})  # (image, B, h, w)
    q = scales(stack[-1], scale)
    finite = stack.isfinite().all(dim=-1).all(dim=-1)  # (image, B)
    stack = stack / q[:, None, None]
    regions = inner_regions(stack[-1]).to(stack.dtype)  # (region, B, y, x)
    energy = _filtered(stack).square()  # (image, h or v, B, y, x)
    pixels = regions.sum(dim=(-2, -1))
    means = torch.einsum("isbyx,rbyx->bris", energy, regions) / pixels.T[..., None, None]

    per_slice = torch.cat([q[:, None], finite.T, pixels.T, means.flatten(1)], dim=1)
    return [_unpack(row, names, rho_of_target) for row in per_slice.cpu().tolist()]


def _unpack(row: Sequence[float], names: Sequence[str], rho_of_target: bool) -> SliceEnergies:
    """One slice from its row: q, one flag an image, one count a region, the energies by region."""
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
        energies = tuple(StreakEnergy(next(values), next(values)) for _ in names)
        needed = images if rho_of_target else images - 1
        constant = [names[i] for i in range(needed) if math.isnan(energies[i].ratio)]
        reason = of_slice
        if not reason and count < MIN_PIXELS:
            reason = f"fewer than {MIN_PIXELS} pixels"
        elif not reason and constant:
            reason = f"{', '.join(constant)} constant along an axis"
        if reason:
            energies = tuple(StreakEnergy(math.nan, math.nan) for _ in names)
        regions.append(RegionEnergies(int(count), reason, energies))
    return SliceEnergies(q, *regions)


def decibel(numerator: float, denominator: float) -> float:
    """10 log10(numerator / denominator); NaN unless both are positive."""
    if not (numerator > 0 and denominator > 0):
        return math.nan
    return 10 * (math.log10(numerator) - math.log10(denominator))


def rms_percent(power: float) -> float:
    """100 sqrt(max(0, power)); NaN stays NaN."""
    return max(signed_rms_percent(power), 0.0)  # in this order max keeps a NaN


def signed_rms_percent(power: float) -> float:
    """100 sign(power) sqrt(|power|); NaN stays NaN."""
    return math.copysign(100 * math.sqrt(abs(power)), power)


def require_axes(count: int, images: Mapping[str, Image]) -> None:
    """Raise ValueError unless every image has `count` axes."""
    for name, image in images.items():
        if image.ndim != count:
            wanted = "(h, w)" if count == 2 else "(B, h, w)"
            raise ValueError(f"{name} must be {wanted}, not {tuple(image.shape)}")


def _filtered(images: Tensor) -> Tensor:
    """h_y * b_x * r and h_x * b_y * r, (image, B, h, w) -> (image, 2, B, h - 8, w - 8).

    Nothing is padded: the pixels where a filter would reach beyond the image are left out.
    """
    height, width = images.shape[-2:]
    if min(height, width) <= 2 * BORDER:
        return images.new_zeros((len(images), 2, images.shape[1], 0, 0))

    def along_x(x: Tensor) -> Tensor:
        rows = x[..., BORDER - 1 : x.shape[-2] - BORDER + 1, :]  # one more on either side
        smooth = F.avg_pool2d(rows, (1, BOX), stride=1)
        high = smooth[..., 1:-1, :] - (smooth[..., :-2, :] + smooth[..., 2:, :]) / 2
        return high / math.sqrt(1.5)

    transposed = along_x(images.swapaxes(-2, -1)).swapaxes(-2, -1)
    return torch.stack([along_x(images), transposed], dim=1)


def _stack(images: Mapping[str, Image]) -> Tensor:
    """All images as one float64 tensor (image, B, h, w), after checks."""
    tensors = {name: as_real(name, image) for name, image in images.items()}
    first, reference = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor.ndim not in (2, 3):
            raise ValueError(f"{name} must be (h, w) or (B, h, w), not {tuple(tensor.shape)}")
        if tensor.shape != reference.shape:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)}, but {first} is {tuple(reference.shape)}"
            )
        if tensor.device != reference.device:
            raise ValueError(f"{name} is on {tensor.device}, but {first} on {reference.device}")
    return torch.stack([t.reshape(-1, *t.shape[-2:]) for t in tensors.values()])
