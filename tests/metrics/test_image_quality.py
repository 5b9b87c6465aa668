import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, gaussian_laplace
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from banding_removal.losses.reconstruction import reconstruction_loss
from banding_removal.metrics.image_quality import VolumeQuality, hfen, ssim


def volume(slices: int, height: int = 20, width: int = 24) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(slices)
    target = rng.uniform(0, 1e-4, (slices, height, width)).astype(np.float32)
    return target, (target + 1e-5 * rng.standard_normal(target.shape)).astype(np.float32)


def quality_of(target: np.ndarray, prediction: np.ndarray) -> VolumeQuality:
    quality = VolumeQuality(data_range=float(target.max()))
    for x, t in zip(torch.tensor(prediction), torch.tensor(target), strict=True):
        quality.add(x[None, None], t[None, None], torch.tensor([target.max()]))
    return quality


@pytest.mark.parametrize("slices", [1, 5, 9])
def test_volume_figures_equal_those_of_scikit_image(slices: int) -> None:
    target, prediction = volume(slices)
    ours = quality_of(target, prediction).result()
    data_range = float(target.max())
    x, t = prediction.astype(np.float64), target.astype(np.float64)
    similarity = np.mean(
        [structural_similarity(a, b, data_range=data_range) for a, b in zip(t, x, strict=True)]
    )
    assert ours.ssim == pytest.approx(similarity, rel=1e-6)
    assert ours.psnr == pytest.approx(peak_signal_noise_ratio(t, x, data_range=data_range))
    assert ours.nmse == pytest.approx(((x - t) ** 2).sum() / (t**2).sum())
    assert ours.mse == pytest.approx(((x - t) ** 2).mean())


def test_a_perfect_and_an_empty_volume_have_figures() -> None:
    target, _ = volume(2)
    perfect = quality_of(target, target).result()
    assert (perfect.nmse, perfect.psnr, perfect.ssim) == (0, math.inf, pytest.approx(1))
    empty = VolumeQuality(data_range=1.0)
    zeros = torch.zeros(1, 1, 9, 9)
    empty.add(zeros + 0.1, zeros, torch.ones(1))
    assert math.isnan(empty.result().nmse)
    assert empty.result().psnr == pytest.approx(20)


def test_parts_of_a_volume_add_up_exactly() -> None:
    target, prediction = volume(6)
    whole = quality_of(target, prediction)
    parts = [quality_of(target[s], prediction[s]) for s in (slice(0, 2), slice(2, 6))]
    for name in ("error", "energy", "pixels", "ssim", "slices"):
        total = sum(getattr(part, name) for part in parts)
        if name == "ssim":  # its data range is the part's own maximum
            continue
        assert total == pytest.approx(getattr(whole, name), rel=1e-12)


def test_ssim_is_per_sample_symmetric_and_independent_of_the_unit() -> None:
    x, y = torch.rand(3, 1, 16, 18).double(), torch.rand(3, 1, 16, 18).double()
    data_range = torch.tensor([1.0, 0.8, 2.0]).double()
    values = ssim(x, y, data_range)
    assert values.shape == (3,)
    torch.testing.assert_close(values, ssim(y, x, data_range))
    torch.testing.assert_close(values, ssim(1e-6 * x, 1e-6 * y, 1e-6 * data_range))
    torch.testing.assert_close(values[1:2], ssim(x[1:2], y[1:2], data_range[1:2]))


def test_the_loss_crops_both_images_to_the_smaller_size() -> None:
    prediction, target = torch.rand(1, 1, 30, 20).double(), torch.rand(1, 1, 24, 24).double()
    loss, _ = reconstruction_loss(prediction, target, torch.ones(1))
    cropped, _ = reconstruction_loss(prediction[..., 3:27, :], target[..., :, 2:22], torch.ones(1))
    assert loss == cropped


def test_the_loss_is_finite_on_an_all_zero_target() -> None:
    prediction = torch.zeros(1, 1, 12, 12, requires_grad=True)
    loss, _ = reconstruction_loss(prediction, torch.zeros(1, 1, 12, 12), torch.tensor([1e-4]))
    loss.backward()
    assert loss == 0
    assert prediction.grad is not None and prediction.grad.isfinite().all()


def gaussian_laplace_reference(image: np.ndarray) -> np.ndarray:
    """Where 15 x 15 pixels fit; SciPy's filter reaches 7 pixels with truncate = 4.5 sigma."""
    filtered = gaussian_laplace(image.astype(np.float64), 1.5, truncate=4.5)
    return filtered[7:-7, 7:-7]


def test_hfen_equals_that_of_scipys_laplacian_of_gaussian() -> None:
    rng = np.random.default_rng(0)
    target = rng.uniform(0, 1e-4, (2, 1, 40, 33)).astype(np.float32)
    prediction = np.stack([gaussian_filter(target[0], (0, 1, 1)), 1.1 * target[1]])
    values = hfen(torch.from_numpy(prediction), torch.from_numpy(target))
    expected = [
        np.linalg.norm(gaussian_laplace_reference((x - t)[0]))
        / np.linalg.norm(gaussian_laplace_reference(t[0]))
        for x, t in zip(prediction, target, strict=True)
    ]
    np.testing.assert_allclose(values.numpy(), expected, rtol=2e-3)
    assert values[1] == pytest.approx(0.1, rel=1e-5)


def test_hfen_ignores_a_constant_and_has_no_value_where_the_target_is_one() -> None:
    target = torch.rand(3, 1, 20, 24, dtype=torch.float64)
    target[2] = 0.1
    values = hfen(target + 0.3, target)
    assert values[:2].tolist() == pytest.approx([0, 0], abs=1e-12)
    assert values[2].isnan()


def test_hfen_names_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="of one shape"):
        hfen(torch.rand(1, 1, 20, 20), torch.rand(1, 1, 20, 21))
    with pytest.raises(ValueError, match="smaller than 15"):
        hfen(torch.rand(1, 1, 20, 14), torch.rand(1, 1, 20, 14))
