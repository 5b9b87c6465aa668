"""Fourier and coil operators of multi-coil MRI on native complex tensors.

The last two axes are (readout, phase encode).
With S the sensitivity maps and F the centred orthonormal 2-D Fourier transform,
`expand` is E = F S and `reduce` its adjoint E^H = sum_coils conj(S) F^-1
(Sriram et al., "End-to-End Variational Networks", MICCAI 2020, eq. 5 and 6).
"""

import torch
from torch import Tensor

IMAGE_AXES = (-2, -1)
COIL_AXIS = -3


def to_kspace(image: Tensor) -> Tensor:
    """Centred orthonormal 2-D FFT, k = F x: image (..., H, W) complex -> k-space, same shape."""
    shifted = torch.fft.ifftshift(image, dim=IMAGE_AXES)
    return torch.fft.fftshift(torch.fft.fft2(shifted, norm="ortho"), dim=IMAGE_AXES)


def to_image(kspace: Tensor) -> Tensor:
    """Centred orthonormal inverse 2-D FFT, x = F^-1 k: (..., H, W) complex -> image, same shape."""
    shifted = torch.fft.ifftshift(kspace, dim=IMAGE_AXES)
    return torch.fft.fftshift(torch.fft.ifft2(shifted, norm="ortho"), dim=IMAGE_AXES)


def expand(image: Tensor, sens_maps: Tensor) -> Tensor:
    """E x = F S x: image (..., 1, H, W), maps (..., coil, H, W) -> k-space (..., coil, H, W)."""
    return to_kspace(sens_maps * image)


def reduce(kspace: Tensor, sens_maps: Tensor) -> Tensor:
    """E^H k = sum over coils of conj(S) F^-1 k: (..., coil, H, W) -> image (..., 1, H, W)."""
    return (sens_maps.conj() * to_image(kspace)).sum(COIL_AXIS, keepdim=True)


def rss(coil_images: Tensor) -> Tensor:
    """Root of the sum of squares over coils: (..., coil, H, W) -> real (..., 1, H, W).

    `vector_norm` rather than sqrt(sum(|x|^2)), whose gradient is NaN where every coil is zero.
    """
    return torch.linalg.vector_norm(coil_images, dim=COIL_AXIS, keepdim=True)


def center_crop(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Central (h, w) part of the last two axes, starting at (H - h) // 2, (W - w) // 2.

    Raises:
        ValueError: `size` is not positive, or larger than the image.
    """
    height, width = image.shape[-2:]
    h, w = size
    if not (0 < h <= height and 0 < w <= width):
        raise ValueError(f"cannot crop an image of {height} x {width} to {h} x {w}")
    top, left = (height - h) // 2, (width - w) // 2
    return image[..., top : top + h, left : left + w]


def crop_to_smaller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Centre-crop two images to the smaller height and the smaller width of the two."""
    size = (min(a.shape[-2], b.shape[-2]), min(a.shape[-1], b.shape[-1]))
    return center_crop(a, size), center_crop(b, size)
