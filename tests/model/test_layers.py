"""The fused layers are held to the plain ones, and to what they promise beside."""

import pytest
import torch
from torch import Tensor, nn

from banding_removal.model import layers
from banding_removal.model.fused_layers import NARROW, Lazy, convolve, normalise
from banding_removal.model.layers import conv_norm, max_pool, relu, up_and_concatenate
from banding_removal.model.unet import UNet

FORMATS = [torch.channels_last, torch.contiguous_format]  # on a CPU, on a GPU


def values(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=dtype, generator=generator).requires_grad_()


def convolution(in_chans: int, out_chans: int, kernel: int = 3) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(in_chans, out_chans, kernel, padding=kernel // 2).double()


def relative(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).detach().norm() / expected.detach().norm())


def both_forms(
    monkeypatch: pytest.MonkeyPatch,
    net: UNet,
    image: Tensor,
    memory_format: torch.memory_format = torch.channels_last,
) -> tuple[list[Tensor], list[Tensor]]:
    """Of the plain U-Net and of the fused one: output, gradient of the input, of the weights.

    Biases in front of a norm are left out: their gradients are rounding errors in the plain form.
    """
    monkeypatch.setattr(layers, "memory_format", lambda _: memory_format)
    weights = [
        weight
        for name, weight in net.named_parameters()
        if name.startswith("head") or name.endswith("weight")
    ]
    results = []
    for fused in (False, True):
        monkeypatch.setattr(layers, "use_fused", lambda _, fused=fused: fused)
        torch.manual_seed(1)  # dropout
        output = net(image)
        loss = (output * values(*output.shape, seed=2).to(output)).sum()
        results.append([output, *torch.autograd.grad(loss, [image, *weights])])
    return results[0], results[1]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("size", [(16, 24), (21, 13)])
def test_the_fused_unet_is_the_plain_one_in_values_and_all_gradients(
    size: tuple[int, int],
    dropout: float,
    memory_format: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    net = UNet(4, 2, dropout).double()
    expected, found = both_forms(monkeypatch, net, values(2, 2, *size), memory_format)
    assert len(found) == 2 + 2 * 5 + 6
    for value, plain in zip(found, expected, strict=True):
        assert value.dtype == torch.float64
        assert relative(value, plain) < 1e-9


@pytest.mark.parametrize("memory_format", FORMATS)
def test_in_float32_they_differ_by_rounding(
    memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    image = values(2, 2, 21, 13, dtype=torch.float32)
    expected, found = both_forms(monkeypatch, UNet(4, 2), image, memory_format)
    for value, plain in zip(found, expected, strict=True):
        assert value.dtype == torch.float32
        assert relative(value, plain) < 5e-5


@pytest.mark.parametrize("memory_format", FORMATS)
def test_in_bfloat16_the_fused_one_is_as_near_to_float32_as_the_plain_one(
    memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net, image = UNet(8, 2), values(2, 2, 42, 39, dtype=torch.float32)
    exact, _ = both_forms(monkeypatch, net, image)
    lower = image.detach().bfloat16().requires_grad_()
    expected, found = both_forms(monkeypatch, net, lower, memory_format)
    assert found[0].dtype == torch.float32 and found[1].dtype == torch.bfloat16
    assert relative(found[0], exact[0]) < 0.02
    for value, plain, truth in zip(found, expected, exact, strict=True):
        assert value.dtype == plain.dtype
        assert relative(value, truth) < 1.2 * relative(plain, truth) + 1e-3


def test_without_training_nothing_is_dropped() -> None:
    net = UNet(4, 1, dropout=0.5).double().eval()
    image = values(1, 2, 8, 8)
    assert torch.equal(net(image), net(image))


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_of_two_inputs_has_the_gradients_of_finite_differences(kernel: int) -> None:
    conv = convolution(5, 2, kernel)
    low, skip = values(2, 3, 3, 2), values(2, 2, 7, 5, seed=1)

    def function(low: Tensor, skip: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        x = up_and_concatenate(relu(Lazy((low,))), Lazy((skip,)))
        assert isinstance(x, Lazy)
        return convolve(x, weight, bias)

    assert conv.bias is not None
    assert torch.autograd.gradcheck(function, (low, skip, conv.weight))
    assert torch.autograd.gradcheck(function, (low, skip, conv.weight, conv.bias))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("chans", [3, NARROW])
def test_normalising_has_the_gradients_of_finite_differences(
    chans: int, memory_format: torch.memory_format
) -> None:
    z, bias = values(2, chans, 4, 5), values(chans, seed=1)
    z = z.detach().contiguous(memory_format=memory_format).requires_grad_()
    assert torch.autograd.gradcheck(normalise, (z, bias))
    y = normalise(z, bias)
    assert y.is_contiguous(memory_format=memory_format)
    y.square().sum().backward()
    # Zero, not missing: distributed training waits for the gradient of every weight.
    assert bias.grad is not None and (bias.grad == 0).all()


def test_large_images_are_normalised_to_the_precision_of_float32() -> None:
    z = (1 + values(1, 2, 640, 368)).detach().contiguous(memory_format=torch.channels_last)
    y = normalise(z.float(), torch.zeros(2))
    assert relative(y.double(), nn.functional.instance_norm(z, eps=1e-5)) < 1e-6


def test_one_tensor_is_kept_for_each_convolution() -> None:
    x, conv = values(1, 3, 16, 16), convolution(3, 8)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = conv_norm(conv, max_pool(relu(Lazy((x,)))))
    assert isinstance(y, Lazy)
    large = {tensor.data_ptr() for tensor in kept if tensor.numel() > conv.weight.numel()}
    assert large == {x.data_ptr(), y.kept[0].data_ptr()}
