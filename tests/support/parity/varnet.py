"""`VarNet` against the network of the public `fastmri` package.

The numbers are made by benchmarks/make_varnet_golden.py. Of the gradient of each weight, they hold
the norm and its products with a few random directions.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from banding_removal.model.varnet import VarNet
from tests.support.parity.compare import Parity, distance, exact_row, load, norm, row, tolerance

NETWORK: dict[str, Any] = {"cascades": 2, "chans": 2, "pools": 2, "sens_chans": 2, "sens_pools": 3}
CASES = ["odd_4", "odd_8_padded", "even_8_given", "batch_4_8_padded"]
DIRECTION_SEED, DIRECTIONS = 5, 3
WEIGHTS = "weights/"  # before their names in the golden file


def golden_varnet(dtype: torch.dtype = torch.float64, *, center_from_mask: bool = True) -> VarNet:
    """The network with the package's weights."""
    network = VarNet(**NETWORK, center_from_mask=center_from_mask)
    arrays = load("varnet").items()
    weights = {key: torch.from_numpy(value) for key, value in arrays if key.startswith(WEIGHTS)}
    network.load_state_dict({key.removeprefix(WEIGHTS): value for key, value in weights.items()})
    return network.to(dtype)


def golden_input(case: str, dtype: torch.dtype = torch.complex128) -> tuple[Tensor, Tensor, Tensor]:
    """Masked k-space, mask and number of centre lines."""
    golden = load("varnet")
    kspace, mask, lines = (golden[f"{case}/{key}"] for key in ("kspace", "mask", "lines"))
    return torch.from_numpy(kspace).to(dtype), torch.from_numpy(mask), torch.tensor([int(lines)])


def varnet_parity(case: str, dtype: str) -> Iterator[Parity]:
    """The image, and norm and direction of the gradient of every weight."""
    golden, real = load("varnet"), getattr(torch, dtype)
    network = golden_varnet(real, center_from_mask=not case.endswith("given"))
    image = network(*golden_input(case, real.to_complex()))
    expected = golden[f"{case}/image"]
    yield row("varnet", f"{case}, image", dtype, image[:, 0], expected)
    rng = np.random.RandomState(DIRECTION_SEED)
    (image[:, 0] * _directions(expected.shape, rng)[0]).sum().backward()
    named = list(network.named_parameters())
    for (name, weight), (size, *products) in zip(named, golden[f"{case}/gradients"], strict=True):
        assert weight.grad is not None
        gradient = weight.grad.double()
        along = (_directions(weight.shape, rng) * gradient).flatten(1).sum(1)
        if size == 0:  # lambda of the first cascade, whose input agrees with the data
            yield exact_row("varnet", f"gradient of {name} (must be 0)", norm(gradient))
            continue
        yield row("varnet", f"norm of the gradient of {name}", dtype, gradient.norm(), size)
        # A product may be near 0: its error is relative to the gradient's norm.
        yield Parity(
            file="varnet",
            quantity=f"gradient of {name} along {DIRECTIONS} directions, {dtype}",
            error=distance(along, np.array(products)) / size,
            tolerance=DIRECTIONS * tolerance(dtype),
        )


def _directions(shape: tuple[int, ...], rng: np.random.RandomState) -> Tensor:
    return torch.from_numpy(rng.standard_normal((DIRECTIONS, *shape)))
