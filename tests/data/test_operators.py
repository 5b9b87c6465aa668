import numpy as np
import pytest
import torch
from torch import Tensor

from banding_removal.data.operators import (
    center_crop,
    crop_to_smaller,
    expand,
    reduce,
    rss,
    to_image,
    to_kspace,
)

SIZES = [(8, 6), (7, 9), (8, 5), (5, 8), (1, 4)]
AXES = (-2, -1)


def complex_noise(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.complex128, generator=generator)


def inner(a: Tensor, b: Tensor) -> Tensor:
    return torch.vdot(a.flatten(), b.flatten())


@pytest.mark.parametrize("size", SIZES)
def test_fourier_transforms_agree_with_numpy(size: tuple[int, int]) -> None:
    x = complex_noise(2, 3, *size, seed=0)
    shifted = np.fft.ifftshift(x.numpy(), axes=AXES)
    forward = np.fft.fftshift(np.fft.fft2(shifted, norm="ortho"), axes=AXES)
    inverse = np.fft.fftshift(np.fft.ifft2(shifted, norm="ortho"), axes=AXES)
    np.testing.assert_allclose(to_kspace(x).numpy(), forward, rtol=0, atol=1e-13)
    np.testing.assert_allclose(to_image(x).numpy(), inverse, rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", SIZES)
def test_fourier_transform_is_unitary(size: tuple[int, int]) -> None:
    x = complex_noise(2, *size, seed=0)
    torch.testing.assert_close(to_image(to_kspace(x)), x)
    torch.testing.assert_close(to_kspace(to_image(x)), x)
    torch.testing.assert_close(to_kspace(x).norm(), x.norm())
    torch.testing.assert_close(to_image(x).norm(), x.norm())


@pytest.mark.parametrize("size", SIZES)
def test_inverse_transform_is_the_adjoint_of_the_forward_one(size: tuple[int, int]) -> None:
    x, y = complex_noise(*size, seed=0), complex_noise(*size, seed=1)
    torch.testing.assert_close(inner(to_kspace(x), y), inner(x, to_image(y)))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_zero_frequency_and_the_middle_pixel_are_at_half_the_size(height: int, width: int) -> None:
    peak = torch.zeros(height, width, dtype=torch.complex128)
    peak[height // 2, width // 2] = (height * width) ** 0.5
    constant = torch.ones(height, width, dtype=torch.complex128)
    torch.testing.assert_close(to_kspace(constant), peak)
    torch.testing.assert_close(to_image(constant), peak)


@pytest.mark.parametrize("size", SIZES)
def test_reduce_is_the_adjoint_of_expand(size: tuple[int, int]) -> None:
    sens_maps = complex_noise(2, 4, *size, seed=0)
    x, y = complex_noise(2, 1, *size, seed=1), complex_noise(2, 4, *size, seed=2)
    torch.testing.assert_close(inner(expand(x, sens_maps), y), inner(x, reduce(y, sens_maps)))


def test_expand_and_reduce_have_coils_on_the_third_axis_from_the_end() -> None:
    x, sens_maps = complex_noise(2, 1, 6, 5, seed=0), complex_noise(2, 4, 6, 5, seed=1)
    kspace = expand(x, sens_maps)
    assert kspace.shape == (2, 4, 6, 5)
    torch.testing.assert_close(kspace[1, 2], to_kspace(sens_maps[1, 2] * x[1, 0]))
    # F is unitary: E^H E is a product with the summed squares of the maps.
    torch.testing.assert_close(reduce(kspace, sens_maps), x * rss(sens_maps) ** 2)


def test_operators_keep_single_precision() -> None:
    x = complex_noise(1, 3, 6, 5, seed=0).to(torch.complex64)
    assert to_kspace(x).dtype == to_image(x).dtype == torch.complex64
    assert expand(x[:, :1], x).dtype == reduce(x, x).dtype == torch.complex64
    assert rss(x).dtype == torch.float32


def test_rss_is_the_root_of_the_sum_of_squares_over_coils() -> None:
    coils = torch.zeros(2, 3, 2, 2, dtype=torch.complex64)
    coils[1, :, 0, 1] = torch.tensor([2, 3j, 6])  # 4 + 9 + 36 = 49
    expected = torch.zeros(2, 1, 2, 2)
    expected[1, 0, 0, 1] = 7
    torch.testing.assert_close(rss(coils), expected)


def test_rss_gradient_is_finite_where_all_coils_are_zero() -> None:
    coils = torch.zeros(1, 3, 2, 2, dtype=torch.complex128)
    coils[0, :, 0, 1] = torch.tensor([2, 3j, 6])
    coils.requires_grad_()
    rss(coils).sum().backward()
    assert coils.grad is not None
    torch.testing.assert_close(coils.grad, coils.detach() / 7)


@pytest.mark.parametrize(
    ("size", "crop", "top", "left"),
    [
        ((6, 7), (4, 3), 1, 2),
        ((7, 6), (4, 3), 1, 1),
        ((5, 8), (2, 5), 1, 1),
        ((5, 8), (5, 8), 0, 0),
        ((6, 6), (1, 6), 2, 0),
    ],
)
def test_center_crop_starts_at_half_of_what_is_cut(
    size: tuple[int, int], crop: tuple[int, int], top: int, left: int
) -> None:
    image = torch.arange(size[0] * size[1]).reshape(1, *size)
    cropped = center_crop(image, crop)
    assert torch.equal(cropped, image[:, top : top + crop[0], left : left + crop[1]])
    assert cropped.shape == (1, *crop)


@pytest.mark.parametrize("size", [(7, 4), (4, 8), (0, 4), (4, 0), (-1, 4), (4, -2)])
def test_center_crop_refuses_sizes_that_do_not_fit(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"6 x 7 to {size[0]} x {size[1]}"):
        center_crop(torch.zeros(1, 6, 7), size)


def test_crop_to_smaller_takes_the_smaller_height_and_the_smaller_width() -> None:
    a = torch.arange(40).reshape(8, 5)
    b = torch.arange(42).reshape(6, 7)
    cropped_a, cropped_b = crop_to_smaller(a, b)
    assert torch.equal(cropped_a, a[1:7, :])
    assert torch.equal(cropped_b, b[:, 1:6])
