"""The predictor against the published one, and against its plain formulation at odd sizes."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from banding_removal.data.operators import expand, reduce
from banding_removal.losses.reconstruction import reconstruction_loss
from banding_removal.model.predictor import Predictor
from banding_removal.model.unet import ComplexUNet, UNet
from tests.support.parity.compare import (
    Parity,
    complex_tensor,
    distance,
    exact_row,
    load,
    load_json,
    norm,
    row,
    tolerance,
    worst,
)
from tests.support.parity.plain import plain_predictor
from tests.support.parity.weights import golden_predictor, published_name

# A bias in front of an instance norm has no effect: its gradient is zero or rounding noise.
WITHOUT_EFFECT = re.compile(r"layer[12]\.0\.bias$")
# With a gradient for k-space the predictor keeps all columns, in training the measured ones alone.
PATHS = {"k-space with gradient": True, "as in training": False}
ODD_SIZES = ((17, 23), (33, 17), (16, 31))  # the padding's halves differ along one or both axes


def predictor_parity(name: str, dtype: str, path: str) -> Iterator[Parity]:
    """Sensitivity maps, first cascade, output, loss and all gradients."""
    golden, facts = load(name), load_json(name)
    predictor = golden_predictor(name, dtype)
    kspace = complex_tensor(golden["masked_kspace"], dtype)[None].requires_grad_(PATHS[path])
    mask = torch.tensor(golden["mask"][..., 0] > 0)[None]
    acs_lines = torch.tensor([int(golden["num_lf"])])

    sens_maps = predictor.sensitivity_maps(kspace, mask, acs_lines)
    # The first state of the published cascade: its data-consistency term is zero.
    refinement = predictor.cascades.get_submodule("0.unet")(reduce(kspace, sens_maps).squeeze(1))
    first = kspace - expand(refinement[:, None], sens_maps)
    output = predictor(kspace, mask, acs_lines)
    target = torch.tensor(golden["target"].astype(dtype))[None, None]
    data_range = torch.tensor(golden["data_range"].astype(dtype))
    loss, similarity = reconstruction_loss(output, target, data_range)
    loss.backward()

    def compare(quantity: str, value: Any, axes: int | None = None) -> Parity:
        # golden k-space has another axis behind the coils'
        exact, published = (
            golden[f"{quantity}_{d}"] if axes is None else golden[f"{quantity}_{d}"].squeeze(axes)
            for d in ("float64", dtype)
        )
        return row(name, f"{quantity}, {path}", dtype, value, exact, published)

    yield compare("sens_maps", sens_maps, 2)
    yield compare("cascade0", first, 2)
    yield compare("output", output)
    yield compare("loss", loss)
    yield compare("ssim", similarity)
    if kspace.requires_grad:
        yield compare("dloss_dkspace", kspace.grad, 2)

    gradients = _gradients(predictor)
    exact, published = (
        dict(zip(facts["param_names"], golden[f"grad_norms_{d}"], strict=True))
        for d in ("float64", dtype)
    )
    norms = {key: torch.linalg.vector_norm(value) for key, value in gradients.items()}
    yield _worst_gradient(name, f"gradient norm, {path}", dtype, norms, exact, published)
    if dtype == "float64":
        whole = {k.removeprefix("grad::"): v for k, v in golden.items() if k.startswith("grad::")}
        yield worst(
            row(name, f"whole gradient, {path}: {key}", dtype, gradients[key], value)
            for key, value in whole.items()
            if not WITHOUT_EFFECT.search(key)
        )


def _gradients(predictor: Predictor) -> dict[str, Tensor]:
    """By published name."""
    found = {}
    for own, weight in predictor.named_parameters():
        assert weight.grad is not None, f"{own} has no gradient"
        found[published_name(own)] = weight.grad
    return found


def _worst_gradient(
    file: str,
    quantity: str,
    dtype: str,
    ours: Mapping[str, Any],
    exact: Mapping[str, Any],
    published: Mapping[str, Any],
) -> Parity:
    """Gradients, or their norms, name by name; the row is that of the worst."""
    assert ours.keys() == exact.keys() == published.keys()
    total = math.hypot(*(norm(value) for value in exact.values()))

    def compare(name: str) -> Parity:
        label = f"{quantity}: {name}"
        if WITHOUT_EFFECT.search(name):
            error = distance(ours[name], exact[name]) / total
            return Parity(
                file=file, quantity=f"{label}, {dtype}", error=error, tolerance=tolerance(dtype)
            )
        return row(file, label, dtype, ours[name], exact[name], published[name])

    return worst(compare(name) for name in exact)


class _Double(nn.Module):
    """In place of a U-Net: twice its input, which it keeps."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return 2 * x


def padding_parity() -> Iterator[Parity]:
    """What reaches the U-Net: padded to multiples of 16, then normalised; and what comes back."""
    golden = load("ops")
    for j in range(3):
        image, padded = (
            torch.tensor(golden[f"pad16_{kind}{j}"]).double() for kind in ("in", "inner")
        )
        unet = ComplexUNet(UNet(chans=2, pools=1))
        double = _Double()
        unet.register_module("unet", double)
        result = unet(torch.complex(image[:, 0], image[:, 1]))
        var, mean = torch.var_mean(padded, dim=(-2, -1), keepdim=True)
        size = " x ".join(map(str, image.shape[-2:]))
        expected = (padded - mean) / var.sqrt()
        yield row("ops", f"padded and normalised, {size}", "float64", double.seen, expected)
        # normalised, doubled and un-normalised: 2 x - mean
        by_channel = torch.view_as_real(result).movedim(-1, 1)
        yield row("ops", f"  and undone, {size}", "float64", by_channel, 2 * image - mean)


def plain_parity(size: tuple[int, int]) -> Iterator[Parity]:
    """Output and gradients of an odd-sized slice against the plain formulation, on both paths."""
    height, width = size
    shape, acs_lines = {"cascades": 2, "pools": 2}, 5
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    torch.manual_seed(0)
    predictor = Predictor(chans=4, sens_chans=4, sens_identity=False, **shape).double()
    for parameter in predictor.parameters():  # biases and lambdas are constants at the start
        parameter.data += 0.1 * random(*parameter.shape)
    mask = torch.rand(width, generator=generator) < 0.4
    first = (width - acs_lines + 1) // 2
    mask[first : first + acs_lines] = True
    kspace = torch.complex(random(3, height, width), random(3, height, width)) * mask
    cotangent = random(1, height, width)

    weights = {name: w.detach().clone() for name, w in predictor.named_parameters()}
    for weight in weights.values():
        weight.requires_grad_()
    expected_output = plain_predictor(weights, kspace, mask, acs_lines, **shape)
    (expected_output * cotangent).sum().backward()
    expected = {
        published_name(name): torch.zeros_like(w) if w.grad is None else w.grad
        for name, w in weights.items()
    }
    file = f"plain {height} x {width}"
    for path, needs_gradient in PATHS.items():
        predictor.zero_grad()
        batch = kspace[None].clone().requires_grad_(needs_gradient)
        output = predictor(batch, mask.view(1, 1, 1, -1), torch.tensor([acs_lines]))[0]
        (output * cotangent).sum().backward()
        yield row(file, f"output, {path}", "float64", output, expected_output)
        yield _worst_gradient(
            file, f"gradient, {path}", "float64", _gradients(predictor), expected, expected
        )


def parameter_parity() -> Iterator[Parity]:
    """Numbers of parameters of the two published predictors."""
    golden = load_json("param_counts")
    for cascades in (12, 6):
        count = sum(p.numel() for p in Predictor(cascades=cascades).parameters())
        difference = abs(count - golden[f"predictor{cascades}"]["params"])
        yield exact_row("param_counts", f"{cascades} cascades: {count} parameters", difference)
