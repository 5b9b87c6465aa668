"""`VarNet` is the network of the public `fastmri` package: outputs and gradients are its own.

The numbers are made by benchmarks/make_varnet_golden.py.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from banding_removal.model import layers
from banding_removal.model.predictor import UnrolledNetwork
from banding_removal.model.varnet import VarNet, VarNetUNet
from tests.support.parity.compare import load

NETWORK: dict[str, Any] = {"cascades": 2, "chans": 2, "pools": 2, "sens_chans": 2, "sens_pools": 3}
CASES = ["odd_4", "odd_8_padded", "even_8_given", "batch_4_8_padded"]
DIRECTION_SEED, DIRECTIONS = 5, 3


def golden_varnet(dtype: torch.dtype = torch.float64, *, center_from_mask: bool = True) -> VarNet:
    network = VarNet(**NETWORK, center_from_mask=center_from_mask)
    prefix = "weights/"
    network.load_state_dict(
        {
            key.removeprefix(prefix): torch.from_numpy(value)
            for key, value in load("varnet").items()
            if key.startswith(prefix)
        }
    )
    return network.to(dtype)


def golden_input(case: str, dtype: torch.dtype = torch.complex128) -> tuple[Tensor, Tensor, Tensor]:
    golden = load("varnet")
    kspace, mask, lines = (golden[f"{case}/{key}"] for key in ("kspace", "mask", "lines"))
    return torch.from_numpy(kspace).to(dtype), torch.from_numpy(mask), torch.tensor([int(lines)])


def directions(shape: torch.Size, rng: np.random.RandomState) -> Tensor:
    return torch.from_numpy(rng.standard_normal((DIRECTIONS, *shape)))


def relative(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).detach().norm() / expected.detach().norm())


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 5e-5)], ids=str
)
@pytest.mark.parametrize("case", CASES)
def test_image_and_gradients_are_those_of_the_public_package(
    case: str, dtype: torch.dtype, tolerance: float, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "use_fused", lambda _: fused)
    golden = load("varnet")
    network = golden_varnet(dtype, center_from_mask=not case.endswith("given"))
    image = network(*golden_input(case, dtype.to_complex()))
    assert image.dtype == dtype
    expected = torch.from_numpy(golden[f"{case}/image"])
    assert relative(image[:, 0].double(), expected) < tolerance
    rng = np.random.RandomState(DIRECTION_SEED)
    (image[:, 0] * directions(expected.shape, rng)[0]).sum().backward()
    named = list(network.named_parameters())
    of_package = torch.from_numpy(golden[f"{case}/gradients"])
    assert len(named) == len(of_package)
    for (name, weight), (norm, *products) in zip(named, of_package, strict=True):
        assert weight.grad is not None
        gradient = weight.grad.double()
        along = (directions(weight.shape, rng) * gradient).flatten(1).sum(1)
        if norm == 0:  # lambda of the first cascade, whose input agrees with the data
            assert name == "cascades.0.dc_weight" and not gradient.any()
            continue
        assert abs(gradient.norm() / norm - 1) < tolerance, name
        assert (along - torch.stack(products)).norm() / norm < tolerance * DIRECTIONS, name


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
