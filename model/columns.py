"""The operators of the cascade on measured phase-encode columns only, a few coils at a time.

A mask leaves out whole phase-encode columns, so whatever acts along readout commutes with it. The
inverse Fourier transform along readout is therefore made once, at the start, and what is left is
one-dimensional. With S the sensitivity maps, F the orthonormal transform along phase encode and M
the choice of columns,

    expand   A x   = M F S x                                    image -> columns of all coils
    reduce   A^H y = sum over coils of conj(S) F^-1 M^T y       the adjoint

The centred transform shifts before and after the FFT. A shift on one side is a phase factor on
the other, so F here is a plain FFT: the phase of the image side is multiplied into the maps
(`Columns.image_phase`), that of the k-space side into the columns (`Columns.values_of`).

No function keeps coil images for the backward pass, which computes them again. Each backward pass
below follows from: the gradient by x of A x is A^H applied to the gradient, and that by S is the
product of the coil images of the gradient and conj(x).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from banding_removal.data.operators import COIL_AXIS

READOUT_AXIS = -2
# On a CPU as many coils at once as fit its caches; on a GPU all of a slice.
CPU_VALUES_AT_ONCE = 2**19


@dataclass(frozen=True)
class Columns:
    """Which phase-encode columns are kept, for each sample of a batch.

    Attributes:
        index: for each sample the positions of its columns, (n_b,) integers, ascending.
        width: number W of all columns.
    """

    index: tuple[Tensor, ...]
    width: int

    @classmethod
    def of(cls, kept: Tensor) -> "Columns":
        """The columns where `kept`, bool (B, 1, 1, W), is true."""
        return cls(tuple(row.nonzero().flatten() for row in kept[:, 0, 0]), kept.shape[-1])

    @property
    def longest(self) -> int:
        """Number n of columns in a batch's tensors; samples with fewer are padded with zeros."""
        return max(len(index) for index in self.index)

    def gather(self, full: Tensor) -> Tensor:
        """The kept columns of (B, ..., W), as (B, ..., n)."""
        parts = [row.index_select(-1, index) for row, index in zip(full, self.index, strict=True)]
        if len(parts) == 1:
            return parts[0][None]
        return torch.stack([F.pad(part, (0, self.longest - part.shape[-1])) for part in parts])

    def values_of(self, kspace: Tensor) -> Tensor:
        """The kept columns of k-space (B, coil, H, W), as `expand` gives them, (B, coil, H, n).

        That is, after the centred orthonormal inverse transform along readout, times the phase of
        the k-space side.
        """
        full = torch.fft.ifftshift(self.gather(kspace), dim=READOUT_AXIS)
        values = torch.fft.fftshift(
            torch.fft.ifft(full, dim=READOUT_AXIS, norm="ortho"), dim=READOUT_AXIS
        )
        phase = self._kspace_phase(kspace).expand(len(kspace), 1, 1, self.width)
        return values * self.gather(phase)

    def image_phase(self, like: Tensor) -> Tensor:
        """Phase of the image side, exp(2 pi i c x / W) with c = W // 2, complex (W,)."""
        return self._phase(torch.arange(self.width, device=like.device), like)

    def _kspace_phase(self, like: Tensor) -> Tensor:
        """Phase of the k-space side, exp(-2 pi i c (y - c) / W) for column y, complex (W,)."""
        column = torch.arange(self.width, device=like.device)
        return self._phase(self.width // 2 - column, like)

    def _phase(self, position: Tensor, like: Tensor) -> Tensor:
        """exp(2 pi i c position / W); exact integers modulo W first, then the inexact 2 pi / W."""
        turn = (self.width // 2 * position).remainder(self.width)
        angle = turn.to(torch.float64) * (2 * math.pi / self.width)
        return torch.polar(torch.ones_like(angle), angle).to(like.dtype)


def expand(image: Tensor, maps: Tensor, columns: Columns) -> Tensor:
    """A x: image (B, H, W), maps (B, coil, H, W), complex -> kept columns (B, coil, H, n)."""
    result: Tensor = _Expand.apply(image, maps, columns)
    return result


def reduce(values: Tensor, maps: Tensor, columns: Columns) -> Tensor:
    """A^H y: kept columns (B, coil, H, n), maps (B, coil, H, W), complex -> image (B, H, W)."""
    result: Tensor = _Reduce.apply(values, maps, columns)
    return result


def to_coil_images(values: Tensor, columns: Columns) -> Tensor:
    """F^-1 M^T y: kept columns (B, coil, H, n) -> coil images (B, coil, H, W)."""
    return torch.stack(
        [_to_image(part, index, columns) for part, index in zip(values, columns.index, strict=True)]
    )


def rss_of_difference(values: Tensor, image: Tensor, maps: Tensor, columns: Columns) -> Tensor:
    """RSS over coils of F^-1 M^T y - S x, real (B, H, W), for `values` y and `image` x."""
    result: Tensor = _RootSumOfSquares.apply(values, image, maps, columns)
    return result


def _to_image(values: Tensor, index: Tensor, columns: Columns) -> Tensor:
    """F^-1 M^T for one sample, (..., n) -> (..., W); ignores the padding after its columns."""
    full = values.new_zeros((*values.shape[:-1], columns.width))
    full.index_copy_(-1, index, values[..., : len(index)])
    return torch.fft.ifft(full, norm="ortho")


def _to_columns(images: Tensor, index: Tensor) -> Tensor:
    """M F for one sample, (..., W) -> (..., n_b)."""
    return torch.fft.fft(images, norm="ortho").index_select(-1, index)


def _chunks(maps: Tensor) -> Iterator[tuple[int, slice]]:
    """Each sample with some of its coils at a time, as many as suit the device."""
    batch, coils, height, width = maps.shape
    at_once = coils
    if maps.device.type == "cpu":
        at_once = max(1, CPU_VALUES_AT_ONCE // (height * width))
    for sample in range(batch):
        for first in range(0, coils, at_once):
            yield sample, slice(first, first + at_once)


class _Expand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, maps: Tensor, columns: Columns) -> Tensor:
        ctx.columns = columns
        ctx.save_for_backward(image, maps)
        values = maps.new_zeros((*maps.shape[:-1], columns.longest))
        for b, coils in _chunks(maps):
            index = columns.index[b]
            values[b, coils, :, : len(index)] = _to_columns(maps[b, coils] * image[b], index)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        image, maps = ctx.saved_tensors
        by_image, by_maps = torch.zeros_like(image), torch.empty_like(maps)
        for b, coils in _chunks(maps):
            coil_images = _to_image(gradient[b, coils], ctx.columns.index[b], ctx.columns)
            by_image[b] += (maps[b, coils].conj() * coil_images).sum(COIL_AXIS)
            torch.mul(coil_images, image[b].conj(), out=by_maps[b, coils])
        return by_image, by_maps, None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, maps: Tensor, columns: Columns) -> Tensor:
        ctx.columns = columns
        ctx.save_for_backward(values, maps)
        image = maps.new_zeros((maps.shape[0], *maps.shape[2:]))
        for b, coils in _chunks(maps):
            coil_images = _to_image(values[b, coils], columns.index[b], columns)
            image[b] += (maps[b, coils].conj() * coil_images).sum(COIL_AXIS)
        return image

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, maps = ctx.saved_tensors
        by_values, by_maps = torch.zeros_like(values), torch.empty_like(maps)
        for b, coils in _chunks(maps):
            index = ctx.columns.index[b]
            by_values[b, coils, :, : len(index)] = _to_columns(maps[b, coils] * gradient[b], index)
            coil_images = _to_image(values[b, coils], index, ctx.columns)
            torch.mul(coil_images, gradient[b].conj(), out=by_maps[b, coils])
        return by_values, by_maps, None


class _RootSumOfSquares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, image: Tensor, maps: Tensor, columns: Columns) -> Tensor:
        squares = torch.zeros_like(image, dtype=image.real.dtype)
        for b, coils in _chunks(maps):
            coil_images = _to_image(values[b, coils], columns.index[b], columns)
            coil_images -= maps[b, coils] * image[b]
            squares[b] += torch.view_as_real(coil_images).square().sum((0, -1))
        root = squares.sqrt_()
        ctx.columns = columns
        ctx.save_for_backward(values, image, maps, root)
        return root

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, image, maps, root = ctx.saved_tensors
        # Where every coil is 0 the norm has a kink; its subgradient 0 is used.
        scale = gradient / torch.where(root > 0, root, 1.0)
        by_values, by_image = torch.zeros_like(values), torch.zeros_like(image)
        by_maps = torch.empty_like(maps)
        for b, coils in _chunks(maps):
            index = ctx.columns.index[b]
            by_coil = _to_image(values[b, coils], index, ctx.columns)
            by_coil -= maps[b, coils] * image[b]
            by_coil *= scale[b]
            by_values[b, coils, :, : len(index)] = _to_columns(by_coil, index)
            by_image[b] -= (maps[b, coils].conj() * by_coil).sum(COIL_AXIS)
            torch.mul(by_coil, -image[b].conj(), out=by_maps[b, coils])
        return by_values, by_image, by_maps, None
