"""`VarNet` is the network of the public `fastmri` package: outputs and gradients are its own."""

import pytest
import torch
from torch import Tensor

from banding_removal.model import layers
from banding_removal.model.predictor import UnrolledNetwork
from banding_removal.model.varnet import VarNet, VarNetUNet
from tests.support.parity.varnet import CASES, NETWORK, golden_input, golden_varnet, varnet_parity


def relative(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).detach().norm() / expected.detach().norm())


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_plain_layers_give_what_the_public_package_gives(
    case: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # tests/test_golden.py compares the fused ones.
    monkeypatch.setattr(layers, "use_fused", lambda _: False)
    rows = list(varnet_parity(case, dtype))
    assert len(rows) > 50
    assert not [row for row in rows if row.too_far]


def test_the_centre_is_found_in_the_mask_or_given() -> None:
    network = VarNet(cascades=1, chans=2, pools=1, sens_chans=2)
    assert isinstance(network, UnrolledNetwork)
    mask = torch.zeros(5, 1, 1, 9, dtype=torch.bool)
    mask[0, ..., 2:6] = True  # two columns to the left of column 4, and two from it on
    mask[1, ..., 3:9] = True  # one to the left
    mask[2, ..., 4:6] = True  # none to the left
    mask[3, ..., ::2] = True
    mask[4] = True
    given = torch.tensor([7])
    assert network.center_lines(mask, given).tolist() == [4, 2, 1, 1, 8]
    network.center_from_mask = False
    assert network.center_lines(mask, given) is given


@pytest.mark.parametrize("size", [(16, 24), (21, 13), (23, 17)])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_fused_unet_is_the_plain_one(
    size: tuple[int, int], dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = VarNetUNet(3, 2, dropout).double()
    image = torch.randn(2, 2, *size, dtype=torch.float64, requires_grad=True)
    for memory_format in (torch.channels_last, torch.contiguous_format):
        monkeypatch.setattr(layers, "memory_format", lambda _, chosen=memory_format: chosen)
        results = []
        for fused in (False, True):
            monkeypatch.setattr(layers, "use_fused", lambda _, fused=fused: fused)
            torch.manual_seed(1)
            output = net(image)
            loss = (output * output.detach().roll(1, -1)).sum()
            results.append([output, *torch.autograd.grad(loss, [image, *net.parameters()])])
        for found, expected in zip(*results, strict=True):
            assert relative(found, expected) < 1e-9


def test_sizes_that_do_not_halve_evenly_are_reflected_as_by_the_package() -> None:
    # Transposed convolutions give 4 rows where the skip has 5.
    small, skip = torch.arange(4.0)[None, None, :, None], torch.zeros(1, 1, 5, 1)
    joined = layers.reflect_and_concatenate(small, skip)
    assert isinstance(joined, Tensor)
    assert joined[0, 0].flatten().tolist() == [0, 1, 2, 3, 2]


def test_a_transposed_convolution_is_that_of_pytorch() -> None:
    torch.manual_seed(0)
    conv = torch.nn.ConvTranspose2d(6, 3, kernel_size=2, stride=2, bias=False).double()
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    fused = layers.up_conv_norm(conv, layers.begin(x))
    assert isinstance(fused, layers.Lazy)
    expected = torch.nn.functional.instance_norm(conv(x))
    torch.testing.assert_close(fused.make(*fused.kept)[0], expected)


def test_the_maps_can_start_as_the_centre_over_its_rss() -> None:
    # Multiples of 16: padding after the normalisation would leave a factor.
    kspace, mask, lines = golden_input("even_8_given")
    torch.manual_seed(0)
    started, at_random = (
        VarNet(**{**NETWORK, "sens_chans": 4}, sens_identity=identity).double()
        for identity in (True, False)
    )
    center = VarNet(**NETWORK).double()
    center.sens_net.norm_unet = torch.nn.Identity()  # type: ignore[assignment]
    expected = center.sensitivity_maps(kspace, mask, lines)
    torch.testing.assert_close(
        started.sensitivity_maps(kspace, mask, lines), expected, rtol=0, atol=1e-2
    )
    assert (at_random.sensitivity_maps(kspace, mask, lines) - expected).abs().mean() > 0.1


def test_recomputed_networks_give_the_same_gradients() -> None:
    inputs = golden_input("odd_8_padded")
    results = []
    for recomputed in (0, 3):
        network = golden_varnet()
        network.recomputed = recomputed
        network(*inputs).sum().backward()
        results.append([weight.grad for weight in network.parameters()])
    for kept, again in zip(*results, strict=True):
        assert kept is not None and again is not None
        torch.testing.assert_close(kept, again)


def test_an_empty_slice_is_reconstructed_as_empty_with_finite_gradients() -> None:
    kspace, mask, lines = golden_input("odd_4")
    network = golden_varnet()
    image = network(0 * kspace, mask, lines)
    image.sum().backward()
    assert (image == 0).all()
    assert all(w.grad is not None and w.grad.isfinite().all() for w in network.parameters())


@pytest.mark.parametrize(("chans", "pools"), [(0, 2), (4, 0)])
def test_impossible_unets_are_refused(chans: int, pools: int) -> None:
    with pytest.raises(ValueError, match="at least one channel"):
        VarNetUNet(chans, pools)
