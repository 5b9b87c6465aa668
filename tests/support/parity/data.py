"""Fourier and coil operators, masks and training examples against the published ones."""

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np
import torch

from banding_removal.data.batch import Example
from banding_removal.data.dataset import SliceDataset
from banding_removal.data.masks import MaskSampler, seeded_by_name
from banding_removal.data.operators import (
    center_crop,
    crop_to_smaller,
    expand,
    reduce,
    rss,
    to_image,
    to_kspace,
)
from banding_removal.data.volume import read_volume
from tests.support.fastmri_files import write_volume
from tests.support.parity.compare import (
    Parity,
    complex_tensor,
    distance,
    exact_row,
    load,
    load_json,
    row,
    worst,
)


def ops_parity() -> Iterator[Parity]:
    """Fourier transforms, RSS, coil operators, crops."""
    golden = load("ops")
    for dtype in ("float32", "float64"):
        for name, transform in (("fft", to_kspace), ("ifft", to_image)):
            yield worst(
                row(
                    "ops",
                    f"centred {name} {j}",
                    dtype,
                    transform(complex_tensor(golden[f"x{j}"], dtype)),
                    golden[f"{name}{j}_float64"],
                    golden[f"{name}{j}_{dtype}"],
                )
                for j in range(5)
            )
    found = rss(complex_tensor(golden["rss_in"], "float32"))[:, 0]
    yield row("ops", "RSS", "float32", found, golden["rss_complex_dim1"])
    sens, image, coils = (
        complex_tensor(golden[key], "float32")[:, :, 0] for key in ("sens", "img", "coilimg")
    )
    expanded = to_image(expand(image, sens))  # the golden expansion stays in the image domain
    yield row("ops", "expand", "float32", expanded, golden["sens_expand"][:, :, 0])
    reduced = reduce(to_kspace(coils), sens)
    yield row("ops", "reduce", "float32", reduced, golden["sens_reduce"][:, :, 0])
    crop_in = torch.tensor(golden["crop_in"])
    for j in range(6):
        h, w = golden[f"crop{j}_shape"].tolist()
        off = distance(center_crop(crop_in, (h, w)), golden[f"crop{j}"])
        yield exact_row("ops", f"centre crop to {h} x {w}", off)
    pair = crop_to_smaller(crop_in, torch.tensor(golden["cts_y"]))
    for ours, key in zip(pair, ("cts_x_out", "cts_y_out"), strict=True):
        yield exact_row("ops", f"crop to the smaller, {key}", distance(ours, golden[key]))


def masks_parity() -> Iterator[Parity]:
    """Every golden mask, column by column; the error is the number of masks that differ."""
    golden, entries = load("masks"), load_json("masks")
    different: dict[str, int] = {}
    for entry in entries:
        kind, seed, offset = entry["kind"], entry["seed"], entry["offset"]
        if isinstance(seed, str):
            rng = seeded_by_name(seed.removeprefix("fname:"))
        else:
            rng = np.random.RandomState(seed)
        if offset is None and kind != "random":
            # the published code draws it with Python's generator
            draws = random.Random(entry["python_random_seed"])
            offset = draws.randrange(entry["accelerations"][0])
        sampler = MaskSampler(
            kind=kind, accelerations=tuple(entry["accelerations"]), acs=tuple(entry["num_low"])
        )
        padding = entry["padding"] and tuple(entry["padding"])
        mask = sampler.draw(entry["n"], rng, offset=offset, acquired=padding)
        same = mask.acs_lines == entry["num_low_returned"] and np.array_equal(
            mask.columns, golden[entry["key"]].astype(bool)
        )
        different[kind] = different.get(kind, 0) + (not same)
    counts = {kind: sum(e["kind"] == kind for e in entries) for kind in different}
    for kind, wrong in different.items():
        yield exact_row("masks", f"{counts[kind]} {kind} masks (number that differ)", wrong)


def orientation_parity() -> Iterator[Parity]:
    """Whole examples read from a file, upright and transposed."""
    golden = load("orientation")
    for entry in load_json("orientation"):
        with tempfile.TemporaryDirectory() as folder:
            example = _golden_example(Path(folder), golden, entry)
        key = entry["key"]
        mask = golden[f"{key}_mask"]
        assert example.target is not None
        off = [
            distance(example.masked_kspace, golden[f"{key}_input"]),
            distance(example.mask.flatten().float(), mask.flatten()),
            distance(example.target[0], golden[f"{key}_target_im"].squeeze()),
        ]
        how = "transposed" if entry["rotated"] else "upright"
        where = "data" if entry["calculate_offsets_directly"] else "header"
        quantity = f"{entry['src']}, {how}, columns by the {where}"
        yield exact_row("orientation", quantity, float(np.max(off)))  # which keeps a NaN


def _golden_example(folder: Path, golden: dict[str, np.ndarray], entry: dict[str, Any]) -> Example:
    acceleration, by_data = entry["accel"], entry["calculate_offsets_directly"]
    # Without offsets from the data, the file's name seeds the draw; the published code draws with
    # Python's generator. Any name that draws the same offset will do.
    wanted = random.Random(entry["python_random_seed"]).randrange(acceleration)
    name = next(
        name
        for name in (f"file{i}.h5" for i in range(1000))
        if by_data or _drawn_offset(name, acceleration) == wanted
    )
    left, right = entry["attrs_padding"]
    path = write_volume(
        folder / name,
        kspace=golden[entry["src"]][None],
        size=golden["kspace"].shape[1:],
        acquired=(left, right),
        target_size=golden["target"].shape,
    )
    with h5py.File(path, "r+") as file:
        file["reconstruction_rss"][0] = golden["target"]
    # The golden target is not the image of the golden k-space.
    with mock.patch("banding_removal.data.one_slice.compare_images", return_value=([], None)):
        volume = read_volume(path)
    sampler = MaskSampler(
        kind=entry["mask_type"], accelerations=(acceleration,), acs=(entry["num_low"],)
    )
    dataset = SliceDataset(
        [volume],
        sampler,
        seed=0,
        rotate_probability=float(entry["rotated"]),
        offsets_from_data=by_data,
    )
    example = dataset[0]
    dataset.close()
    return example


def _drawn_offset(name: str, acceleration: int) -> int:
    rng = seeded_by_name(name)
    rng.randint(0, 1)
    rng.randint(0, 1)
    return int(rng.randint(acceleration))
