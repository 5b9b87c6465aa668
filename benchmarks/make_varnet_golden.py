"""Make tests/golden/varnet*: what the public `fastmri` package computes, for the tests to compare.

    python -m benchmarks.make_varnet_golden

It needs `pip install fastmri`. Images and gradients are those of `fastmri.models.VarNet` in
float64. A gradient is stored as its norm and its products with the random directions that
`numpy.random.RandomState(DIRECTION_SEED)` draws, in the order of the weights: a few numbers for
each weight instead of a tensor. Masks are those of `create_mask_for_mask_type`,
seeded by file names.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastmri.data.subsample import create_mask_for_mask_type
from fastmri.models import VarNet
from numpy.typing import NDArray
from torch import Tensor

from banding_removal.config.settings import REPOSITORY
from banding_removal.data.operators import to_kspace

FOLDER = REPOSITORY / "tests" / "golden"
NETWORK = {"num_cascades": 2, "chans": 2, "pools": 2, "sens_chans": 2, "sens_pools": 3}
DIRECTION_SEED, DIRECTIONS = 5, 3
# name: size, accelerations of the slices of a batch, acquired columns, number of lines given or not
CASES: dict[str, tuple[tuple[int, int], tuple[int, ...], tuple[int, int], bool]] = {
    "odd_4": ((29, 33), (4,), (0, 33), False),
    "odd_8_padded": ((27, 51), (8,), (4, 46), False),
    "even_8_given": ((32, 48), (8,), (0, 48), True),
    "batch_4_8_padded": ((24, 38), (4, 8), (3, 36), False),
}
NAMES = ("file1000000.h5", "file1002252.h5", "a.h5")
WIDTHS = (368, 321, 64)
LISTS: tuple[tuple[list[float], list[int]], ...] = (
    ([0.08], [4]),
    ([0.04], [8]),
    ([0.08, 0.04], [4, 8]),
    ([0.1, 0.06, 0.02], [3, 5, 10]),
)


def smooth_slice(size: tuple[int, int], coils: int, rng: np.random.RandomState) -> Tensor:
    """K-space (coil, H, W), complex128, of an ellipse with a texture and smooth coils."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, length) for length in size), indexing="ij")
    image = (x**2 + 1.4 * y**2 < 0.7) * (1 + 0.4 * np.sin(7 * x + 3 * y)) + 0.05
    turn = 2 * np.pi * np.arange(coils)[:, None, None] / coils
    coil_maps = np.exp(-((x - np.cos(turn)) ** 2) - (y - np.sin(turn)) ** 2 + 1j * turn * (1 + x))
    noise = rng.standard_normal((2, coils, *size)) * 0.02
    return to_kspace(torch.from_numpy(1e-4 * (image * coil_maps + noise[0] + 1j * noise[1])))


def undersampled(
    size: tuple[int, int], accelerations: Sequence[int], acquired: tuple[int, int]
) -> tuple[Tensor, Tensor, int]:
    """Masked k-space (B, coil, H, W) complex128 of complex64 values, mask (B, 1, 1, W), lines."""
    rng = np.random.RandomState(0)
    slices, masks = [], []
    for number, acceleration in enumerate(accelerations):
        function = create_mask_for_mask_type("equispaced_fraction", [0.2 / acceleration**0.5], [
            acceleration
        ])  # fmt: skip
        mask, lines = function((1, size[1], 1), seed=number)
        columns = mask[0, :, 0].bool()
        columns[: acquired[0]] = False
        columns[acquired[1] :] = False
        slices.append(smooth_slice(size, 3, rng) * columns)
        masks.append(columns[None, None])
    kspace = torch.stack(slices).to(torch.complex64)
    return kspace.to(torch.complex128), torch.stack(masks), lines


def directions(shape: torch.Size, rng: np.random.RandomState) -> Tensor:
    """Random directions (n, *shape); the test draws the same."""
    return torch.from_numpy(rng.standard_normal((DIRECTIONS, *shape)))


def outputs(network: VarNet, name: str) -> dict[str, NDArray[Any]]:
    """Inputs, image and gradients of a case; the loss is the product with the first direction."""
    size, accelerations, acquired, given = CASES[name]
    kspace, mask, lines = undersampled(size, accelerations, acquired)
    network.zero_grad()
    image = network(torch.view_as_real(kspace), mask[..., None], lines if given else None)
    rng = np.random.RandomState(DIRECTION_SEED)
    (image * directions(image.shape, rng)[0]).sum().backward()
    gradients = []
    for weight in network.parameters():
        assert weight.grad is not None
        products = (directions(weight.shape, rng) * weight.grad).flatten(1).sum(1)
        gradients.append(torch.cat([weight.grad.norm()[None], products]))
    return {
        f"{name}/kspace": kspace.to(torch.complex64).numpy(),
        f"{name}/mask": mask.numpy(),
        f"{name}/lines": np.array(lines if given else 0),
        f"{name}/image": image.detach().numpy(),
        f"{name}/gradients": torch.stack(gradients).numpy(),
    }


def mask_rows() -> list[dict[str, Any]]:
    """What the package draws, by kind, lists, file name and width."""
    rows = []
    for kind in ("random", "equispaced_fraction"):
        for fractions, accelerations in LISTS:
            function = create_mask_for_mask_type(kind, fractions, accelerations)
            for name in NAMES:
                for width in WIDTHS:
                    mask, lines = function((1, width, 1), seed=tuple(map(ord, name)))
                    columns = "".join("01"[int(column)] for column in mask.flatten())
                    packed = hex(int(columns, 2))
                    rows.append(
                        {"kind": kind, "fractions": fractions, "accelerations": accelerations}
                        | {"name": name, "width": width, "acs_lines": lines, "columns": packed}
                    )
    return rows


def main(folder: Path = FOLDER) -> None:
    """Write varnet.npz and varnet_masks.json."""
    torch.manual_seed(0)
    network = VarNet(**NETWORK)
    with torch.no_grad():  # otherwise lambda is 1 everywhere
        for number, cascade in enumerate(network.cascades):
            cascade.dc_weight.fill_(0.7 + 0.4 * number)
    arrays = {f"weights/{key}": value.numpy() for key, value in network.state_dict().items()}
    network.double()
    for name in CASES:
        arrays |= outputs(network, name)
    np.savez_compressed(folder / "varnet.npz", **arrays)
    lines = ",\n".join(json.dumps(row) for row in mask_rows())
    (folder / "varnet_masks.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
