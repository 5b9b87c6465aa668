from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from banding_removal.model import fused_layers
from banding_removal.model.fused_layers import convolve, convolve_and_normalise
from banding_removal.model.unet import UNet, _as_it_is, _merged, _pooled


def values(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()


def layer(in_chans: int, out_chans: int) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(in_chans, out_chans, kernel_size=3, padding=1).double()


def with_modules(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """What the fused function stands for."""
    return nn.InstanceNorm2d(conv.out_channels)(conv(x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(8, 6), (7, 5)])
def test_it_equals_relu_pooling_convolution_and_norm_with_all_gradients(
    size: tuple[int, int], layout: torch.memory_format
) -> None:
    x, conv = values(2, 3, *size), layer(3, 5)
    x = x.detach().contiguous(memory_format=layout).requires_grad_()
    expected = with_modules(conv, F.max_pool2d(F.relu(x), 2))
    weight = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, [x, conv.weight], weight)
    got = convolve_and_normalise(partial(_pooled, None), conv, x)
    assert got.is_contiguous(memory_format=layout)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(got, [x, conv.weight], weight), wanted, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_upsampled_and_skip_meet_their_own_part_of_the_weight() -> None:
    low, skip, conv = values(2, 3, 4, 3), values(2, 2, 9, 6, seed=1), layer(5, 4)
    up = F.interpolate(F.relu(low), size=(9, 6), mode="bilinear", align_corners=False)
    expected = with_modules(conv, torch.cat([up, F.relu(skip)], dim=1))
    weight = torch.randn_like(expected)
    leaves = [low, skip, conv.weight]
    wanted = torch.autograd.grad(expected, leaves, weight)
    got = convolve_and_normalise(partial(_merged, None, None), conv, low, skip)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(got, leaves, weight), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_the_gradient_of_a_bias_under_a_norm_is_zero_and_not_missing() -> None:
    x, conv = values(1, 2, 6, 6), layer(2, 3)
    convolve_and_normalise(_as_it_is, conv, x).square().sum().backward()
    assert conv.bias is not None and conv.bias.grad is not None
    assert (conv.bias.grad == 0).all()


def test_without_norm_the_bias_counts() -> None:
    x, conv = values(2, 2, 6, 5), layer(2, 3)
    assert conv.bias is not None
    got = convolve(_as_it_is, conv.weight, conv.bias, x)
    torch.testing.assert_close(got, conv(x))
    weight = torch.randn_like(got)
    leaves = [x, conv.weight, conv.bias]
    wanted = torch.autograd.grad(conv(x), leaves, weight)
    for ours, theirs in zip(torch.autograd.grad(got, leaves, weight), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_one_tensor_is_kept_for_each_convolution() -> None:
    x, conv = values(1, 3, 16, 16), layer(3, 8)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = convolve_and_normalise(partial(_pooled, None), conv, x)
    large = {tensor.data_ptr() for tensor in kept if tensor.numel() > conv.weight.numel()}
    assert large == {x.data_ptr(), y.data_ptr()}


@pytest.mark.parametrize("chans", [4, 40])  # on either side of the narrow ones' own path
def test_in_bfloat16_values_and_gradients_are_near(chans: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, chans, kernel_size=3, padding=1)
    x = torch.randn(2, 3, 24, 20)
    weight = torch.randn(2, chans, 24, 20)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        leaf = x.to(dtype).requires_grad_()
        y = convolve_and_normalise(_as_it_is, conv, leaf)
        assert y.dtype == dtype
        results.append([y, *torch.autograd.grad(y, [leaf, conv.weight], weight.to(dtype))])
    for exact, lower in zip(*results, strict=True):
        assert (lower - exact).norm() < 0.02 * exact.norm()


def test_dropped_channels_are_the_same_in_the_backward_pass() -> None:
    torch.manual_seed(0)
    net = UNet(4, 2, dropout=0.5).double()
    x = torch.randn(1, 2, 16, 16, dtype=torch.float64)

    def loss() -> Tensor:
        torch.manual_seed(1)
        return (net(x) ** 2).sum()

    loss().backward()
    block = net.up[0]
    weight = block.get_parameter("second.weight")
    assert weight.grad is not None
    position = tuple(weight.grad.abs().flatten().argmax().unsqueeze(0).tolist())
    flat = weight.data.view(-1)
    step, gradient = 1e-6, weight.grad.flatten()[position]
    with torch.no_grad():
        flat[position] += step
        above = loss()
        flat[position] -= 2 * step
        below = loss()
    torch.testing.assert_close((above - below) / (2 * step), gradient, rtol=1e-5, atol=0)
    net.eval()
    torch.testing.assert_close(net(x), net(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [(24, 9), (7, 5)])
def test_in_parts_as_many_pixels_need_on_a_cpu_nothing_changes(
    size: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv = layer(3, 5)
    x = values(2, 3, *size).to(dtype).detach().requires_grad_()

    def run() -> list[Tensor]:
        y = convolve_and_normalise(partial(_pooled, None), conv, x)
        weight = values(*y.shape, seed=1).to(dtype)
        return [y, *torch.autograd.grad(y, [x, conv.weight], weight)]

    whole = run()
    monkeypatch.setattr(fused_layers, "CPU_VALUES_AT_ONCE", 2 * 2 * 5 * (size[1] // 2))  # two rows
    monkeypatch.setattr(fused_layers, "CPU_PIXELS_AT_ONCE", 3 * (size[1] // 2))
    exact = dtype == torch.float64
    for ours, theirs in zip(run(), whole, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-10 if exact else 0.02, atol=1e-12 if exact else 0.02
        )
