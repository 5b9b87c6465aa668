from dataclasses import replace

import pytest
import torch
from torch import Tensor

from banding_removal.assembly import make_datasets
from banding_removal.config import Settings
from banding_removal.smooth_target import smooth_target
from banding_removal.steps import make_players, train_step
from data.dataset import collate

ONE = torch.ones(1, dtype=torch.float64)


def noise(size: tuple[int, int] = (64, 48)) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.05 + 0.01 * torch.randn(1, 1, *size, dtype=torch.float64, generator=generator)


def test_dark_noise_is_smoothed_along_readout_alone() -> None:
    dark = noise()
    smooth = smooth_target(dark, ONE, 0.5)
    across, along = (smooth.diff(dim=dim).std() / dark.diff(dim=dim).std() for dim in (-2, -1))
    assert across < 0.9 * along
    torch.testing.assert_close(smooth.mean(), dark.mean(), rtol=1e-3, atol=0)
    # Exactly what each column is under the kernel, away from the border.
    kernel = torch.exp(-(torch.tensor([-2.0, -1, 0, 1, 2], dtype=torch.float64) ** 2) / 0.5)
    expected = sum(k * dark[..., i : i + 60, :] for i, k in enumerate(kernel / kernel.sum()))
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(smooth[..., 2:-2, :], expected)


def test_bright_anatomy_and_what_surrounds_it_stay_as_they_are() -> None:
    image = noise()
    image[..., 16:48, 12:36] += 1
    smooth = smooth_target(image, 1.1 * ONE, 0.5)
    inside = (..., slice(17, 47), slice(13, 35))  # a corner is dark around
    assert torch.equal(smooth[inside], image[inside])
    edge = (..., slice(14, 16), slice(14, 34))
    assert (smooth[edge] - image[edge]).abs().max() < 0.02
    assert not torch.equal(smooth[..., :8, :], image[..., :8, :])


def test_the_unit_does_not_matter_and_empty_slices_stay_empty() -> None:
    image = noise((32, 32))
    smooth = smooth_target(image, ONE, 0.5)
    torch.testing.assert_close(smooth_target(1e-5 * image, 1e-5 * ONE, 0.5), 1e-5 * smooth)
    empty = torch.zeros_like(image)
    assert torch.equal(smooth_target(empty, ONE, 0.5), empty)


@pytest.mark.parametrize("blur", [0.0, 0.7])
def test_training_has_the_smooth_target_and_validation_the_real_one(
    settings: Settings, blur: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    from banding_removal import steps

    real = steps.reconstruction_loss

    def noted(image: Tensor, target: Tensor, *args: object) -> tuple[Tensor, Tensor]:
        seen.append(target)
        return real(image, target, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(steps, "reconstruction_loss", noted)
    settings = replace(settings, target_blur=blur)
    train_set, _ = make_datasets(settings)
    batch = collate([train_set[0]])
    assert batch.target is not None
    train_step(settings, make_players(settings, torch.device("cpu")), [batch], 1)
    expected = batch.target if blur == 0 else smooth_target(batch.target, batch.data_range, blur)
    assert torch.equal(seen[0], expected)
