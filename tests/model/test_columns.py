import pytest
import torch
from torch import Tensor

from banding_removal.data import operators
from banding_removal.model import columns
from banding_removal.model.columns import Columns

SIZES = [(1, 6, 8), (3, 7, 9), (4, 5, 16)]


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.complex128, generator=generator)


def problem(coils: int, height: int, width: int) -> tuple[Tensor, Tensor, Columns, Tensor]:
    """Maps, image, columns of two samples with different numbers of them, and their mask."""
    mask = torch.rand(2, 1, 1, width, generator=torch.Generator().manual_seed(2)) < 0.5
    mask[0, ..., :3] = True
    maps, image = random(2, coils, height, width), random(2, height, width, seed=1)
    return maps, image, Columns.of(mask), mask


@pytest.mark.parametrize(("coils", "height", "width"), SIZES)
def test_reduce_is_the_adjoint_of_expand(coils: int, height: int, width: int) -> None:
    maps, image, kept, _ = problem(coils, height, width)
    expanded = columns.expand(image, maps, kept)
    values = random(*expanded.shape, seed=3)
    for sample, index in enumerate(kept.index):
        assert (expanded[sample, ..., len(index) :] == 0).all()
    left = torch.vdot(expanded.flatten(), values.flatten())
    right = torch.vdot(image.flatten(), columns.reduce(values, maps, kept).flatten())
    torch.testing.assert_close(left, right)


@pytest.mark.parametrize(("coils", "height", "width"), SIZES)
def test_they_are_the_two_dimensional_operators_on_measured_columns(
    coils: int, height: int, width: int
) -> None:
    maps, image, kept, mask = problem(coils, height, width)
    phased = maps * kept.image_phase(maps)
    kspace = operators.expand(image[:, None], maps) * mask
    torch.testing.assert_close(columns.expand(image, phased, kept), kept.values_of(kspace))
    torch.testing.assert_close(
        columns.reduce(kept.values_of(kspace), phased, kept)[:, None],
        operators.reduce(kspace, maps),
    )
    residual = operators.to_image(kspace) - maps * image[:, None]
    torch.testing.assert_close(
        columns.rss_of_difference(kept.values_of(kspace), image, phased, kept)[:, None],
        operators.rss(residual),
    )


def test_gradients_are_those_of_finite_differences() -> None:
    maps, image, kept, _ = problem(2, 3, 5)
    values = random(2, 2, 3, kept.longest, seed=4)
    for tensor in (values, image, maps):
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, s: columns.expand(x, s, kept), (image, maps))
    assert torch.autograd.gradcheck(lambda v, s: columns.reduce(v, s, kept), (values, maps))
    assert torch.autograd.gradcheck(
        lambda v, x, s: columns.rss_of_difference(v, x, s, kept), (values, image, maps)
    )


def test_coils_in_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, image, kept, _ = problem(4, 5, 16)
    whole = columns.expand(image, maps, kept)
    back = columns.reduce(whole, maps, kept)
    monkeypatch.setattr(columns, "CPU_VALUES_AT_ONCE", 1)
    torch.testing.assert_close(columns.expand(image, maps, kept), whole)
    torch.testing.assert_close(columns.reduce(whole, maps, kept), back)


def test_the_norm_of_nothing_is_zero_with_a_finite_gradient() -> None:
    maps, image, kept, _ = problem(2, 4, 6)
    values = torch.zeros(2, 2, 4, kept.longest, dtype=torch.complex128, requires_grad=True)
    root = columns.rss_of_difference(values, 0 * image, maps, kept)
    root.sum().backward()
    assert (root == 0).all()
    assert values.grad is not None and values.grad.isfinite().all()
