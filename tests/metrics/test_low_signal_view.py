import pytest
import torch
from torch import Tensor

from banding_removal.losses.adversary_input import adversary_input
from banding_removal.losses.orientation import OrientationObjective
from banding_removal.metrics.low_signal_view import low_signal_view
from banding_removal.model.classifiers import build_adversary


def dark_left_bright_right(size: tuple[int, int] = (64, 64), noise: float = 0.02) -> Tensor:
    """Air left, dark tissue in the middle, bright tissue right; float64 (1, 1, h, w)."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    image = torch.zeros(1, 1, height, width, dtype=torch.float64)
    image[..., width // 3 : 2 * width // 3] = 0.15
    image[..., 2 * width // 3 :] = 1.0
    return (image + noise * torch.randn(image.shape, generator=generator).double()).abs()


@pytest.mark.parametrize("factor", [1e-7, 3.0, 1e6])
def test_the_view_does_not_depend_on_the_unit(factor: float) -> None:
    image = dark_left_bright_right()
    torch.testing.assert_close(low_signal_view(factor * image), low_signal_view(image))


def test_the_view_turns_and_flips_with_the_image() -> None:
    image = dark_left_bright_right((48, 66))
    view = low_signal_view(image)
    torch.testing.assert_close(low_signal_view(image.mT), view.mT)
    torch.testing.assert_close(low_signal_view(image.flip(-1)), view.flip(-1))


def test_dark_regions_have_equal_contrast_and_bright_tissue_fades() -> None:
    image = dark_left_bright_right((96, 96))
    # Four times as much texture in air as in dark tissue.
    image[..., :32] *= 4
    view = low_signal_view(image)[0, 0, 12:-12]
    air, dark, bright = view[:, 12:20].std(), view[:, 44:52].std(), view[:, 80:84].std()
    assert 0.7 < air / dark < 1.4
    assert bright < 0.01 * dark


def test_streaks_of_a_percent_stand_out_in_the_view() -> None:
    image = dark_left_bright_right((96, 96), noise=0.005)
    generator = torch.Generator().manual_seed(1)
    streaked = image + 0.01 * torch.randn(96, 1, generator=generator).double()
    share = {}
    for view in ("image", "low_signal"):
        plain, banded = (adversary_input(x, torch.zeros(1), view) for x in (image, streaked))
        share[view] = float((banded - plain).square().mean())
    assert share["image"] < 0.01
    assert share["low_signal"] > 0.3


@pytest.mark.parametrize("value", [0.0, 1e-4])
def test_an_image_without_texture_gives_zeros_and_finite_gradients(value: float) -> None:
    image = torch.full((2, 1, 32, 32), value, requires_grad=True)
    view = low_signal_view(image)
    assert view.abs().max() < 1e-2
    objective = OrientationObjective(build_adversary("simple", chans=4), view="low_signal")
    objective.predictor_term(image, torch.tensor([0.0, 1.0])).backward()
    assert image.grad is not None and image.grad.isfinite().all()


def test_a_slice_of_noise_alone_is_shown_whole() -> None:
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(1, 1, 64, 64, generator=generator).abs()
    seen = adversary_input(noise, torch.zeros(1), "low_signal")[:, 0]
    quarters = seen.unfold(1, 32, 32).unfold(2, 32, 32).std(dim=(-2, -1))
    assert quarters.min() > 0.7


def test_the_gradient_reaches_dark_texture_and_no_bright_tissue() -> None:
    image = dark_left_bright_right((96, 96)).requires_grad_()
    # Of a weighting of one's own: the view's mean square hardly depends on the texture's level.
    weight = torch.randn(96, 96, generator=torch.Generator().manual_seed(3)).double()
    (low_signal_view(image) * weight).sum().backward()
    assert image.grad is not None
    gradient = image.grad[0, 0].abs()
    assert gradient[:, 80:].max() < 1e-2 * gradient[:, 8:60].mean()


def test_weight_and_level_are_constants_for_the_gradient() -> None:
    image = dark_left_bright_right().requires_grad_()
    direction = torch.randn(64, 64, generator=torch.Generator().manual_seed(4)).double()
    # Linear in the image once weight and level are held: the gradient times the image is the view.
    value = (low_signal_view(image) * direction).sum()
    value.backward()
    assert image.grad is not None
    torch.testing.assert_close((image.grad * image).sum(), value.detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_images_are_viewed_in_float32(dtype: torch.dtype) -> None:
    view = low_signal_view(dark_left_bright_right().to(dtype))
    assert view.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert view.isfinite().all()


def test_both_acts_and_earlier_images_have_the_view() -> None:
    torch.manual_seed(0)
    adversary = build_adversary("patch", chans=4).double()
    objective = OrientationObjective(adversary, view="low_signal")
    image = torch.cat([dark_left_bright_right(), dark_left_bright_right()])
    rotated = torch.tensor([0.0, 1.0])
    x = adversary_input(image, rotated, "low_signal")
    logits = adversary(x).flatten(2).mean(2)
    losses = objective.adversary_loss(image, rotated)
    torch.testing.assert_close(losses.logits, logits.detach())
    turned_back = torch.where(rotated.view(2, 1, 1, 1) > 0, image.mT, image)
    again = objective.adversary_loss_upright(turned_back, rotated, 0.1)
    torch.testing.assert_close(again.logits, losses.logits)
