from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from banding_removal.data.batch import collate
from banding_removal.data.dataset import SliceDataset
from banding_removal.data.masks import MaskSampler
from banding_removal.data.volume import read_volume
from banding_removal.metrics.banding import banding_of_slice
from banding_removal.metrics.image_quality import Quality
from banding_removal.metrics.slice_pair import SlicePair
from banding_removal.pictures.curves import write_curves
from banding_removal.pictures.input_grid import write_input_grid
from banding_removal.pictures.page import GAP, LINE_HEIGHT, Row, colour_bar, write_page
from banding_removal.pictures.validation_grid import (
    ValidatedSlice,
    banding_caption,
    write_validation_grid,
)
from tests.support.fastmri_files import write_volume


def validated_slice(size: tuple[int, int], seed: int = 0) -> ValidatedSlice:
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(size, generator=generator)
    return ValidatedSlice(
        pair=SlicePair(
            name="file1000001.h5",
            slice_index=seed,
            acquisition="CORPDFS_FBK",
            data_range=1.0,
            scale=1.0,
            target=target,
            along_x=target + 0.01 * torch.randn(size, generator=generator),
            along_y=target + 0.01 * torch.randn(size, generator=generator),
        ),
        zero_filled=target * 0.5,
        quality=Quality(nmse=float("nan"), psnr=30.0, ssim=0.8, mse=1e-10),
        banding=None,
    )


def read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


@pytest.mark.parametrize("size", [(16, 16), (97, 61), (320, 320), (640, 368)])
@pytest.mark.parametrize("zero_filled", [False, True])
def test_nothing_of_a_grid_is_cut_off_at_any_size(
    tmp_path: Path, size: tuple[int, int], zero_filled: bool
) -> None:
    path = tmp_path / "grid.png"
    write_validation_grid(
        path,
        [validated_slice(size, i) for i in range(2)],
        header=["a long header " * 40, "second line"],
        zero_filled=zero_filled,
        window=0.25,
    )
    pixels = read(path)
    factor = max(1, -(-240 // max(size)))
    zoomed = round(0.4 * size[1])
    assert pixels.shape[1] >= (3 + zero_filled) * (size[1] * factor + GAP) + 3 * (zoomed + GAP)
    # Text and pictures end before the margins.
    for margin in (pixels[:, : GAP - 2], pixels[:, -(GAP - 2) :], pixels[:3], pixels[-3:]):
        assert (margin == 255).all()


def test_the_columns_hold_what_they_say(tmp_path: Path) -> None:
    item = validated_slice((240, 240))
    path = tmp_path / "grid.png"
    write_validation_grid(path, [item], header=[], zero_filled=False, window=None)
    pixels = read(path).astype(int)
    target = item.pair.target
    low, high = float(target.min()), float(target.max())
    scaled = (255 * (target - low) / (high - low)).round().int().numpy()
    error = (item.pair.along_x - target).abs() / (high - low)
    grey_error = (255 * (0.5 + 4 * error).clamp(0, 1)).round().int().numpy()
    rows = [
        y for y in range(pixels.shape[0] - 240) if (pixels[y, GAP : GAP + 240] == scaled[0]).all()
    ]
    assert rows, "the target is not on the page"
    top = rows[0]
    third = 3 * GAP + 2 * 240
    assert (pixels[top : top + 240, GAP : GAP + 240] == scaled).all()
    assert (pixels[top : top + 240, third : third + 240] == grey_error).all()


def test_a_grid_of_an_all_zero_slice_is_written(tmp_path: Path) -> None:
    item = validated_slice((16, 16))
    blank = replace(item, pair=replace(item.pair, target=torch.zeros(16, 16)))
    write_validation_grid(tmp_path / "grid.png", [blank], header=[], zero_filled=True, window=0.25)
    assert read(tmp_path / "grid.png").ndim == 2


def test_a_caption_says_the_signed_excess_or_why_there_is_none() -> None:
    target = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) * 0.1
    lines = 0.02 * torch.randn(64, 1, generator=torch.Generator().manual_seed(1))
    # Streaks across the phase-encode axis: over-corrected.
    found = banding_of_slice(target + lines.T, target + lines, target, scale=1.0)
    assert found.low_signal.signed_excess < 0
    assert f"signed excess {found.low_signal.signed_excess:.2f} %" in banding_caption(found)
    assert "signed excess -" in banding_caption(found)
    small = banding_of_slice(target[:12, :12], target[:12, :12], target[:12, :12], scale=1.0)
    assert banding_caption(small) == f"banding not measurable: {small.low_signal.reason}"
    assert banding_caption(None) == "banding not measurable: one orientation only"


@pytest.mark.parametrize("coils", [1, 3, 9])
def test_the_input_grid_shows_every_coil(tmp_path: Path, coils: int) -> None:
    volume = read_volume(write_volume(tmp_path / "v.h5", coils=coils))
    dataset = SliceDataset(
        [volume], MaskSampler(kind="magic", accelerations=(4,), acs=(4,)), seed=0
    )
    write_input_grid(tmp_path / "raw.png", collate([dataset[1]]))
    height = read(tmp_path / "raw.png").shape[0]
    rows = 1 + -(-coils // 4)
    assert height > rows * 240


def test_curves_are_drawn_from_the_first_epoch_on(tmp_path: Path) -> None:
    row = {"epoch": 1, "train_loss": 0.5, "val_loss": 0.4, "val_ssim": 0.7, "lr": 1e-3}
    write_curves(tmp_path / "curves.png", [row], "one epoch")
    one = read(tmp_path / "curves.png")
    write_curves(tmp_path / "curves.png", [row, {**row, "epoch": 2, "lr": 1e-4}], "two epochs")
    assert not np.array_equal(one, read(tmp_path / "curves.png"))


def test_curves_have_a_panel_for_each_group_with_values(tmp_path: Path) -> None:
    row = {"epoch": 1, "train_loss": 0.5, "train_ssim": 0.7, "lr": 1e-3}
    heights = []
    for extra in ({}, {"streaks": 0.1}, {"streaks": 0.1, "val_nmse": 0.1}):
        write_curves(tmp_path / "curves.png", [{**row, **extra}], "")
        heights.append(read(tmp_path / "curves.png").shape[0])
    assert heights[0] < heights[1] == heights[2]


def test_a_table_stands_below_the_pictures(tmp_path: Path) -> None:
    row = Row({"a picture": np.full((300, 300), 128, np.uint8)})
    write_page(tmp_path / "without.png", [row], ["header"])
    table = [["set", "SSIM"], ["a long name " * 12, "0.5"], ["b", "0.6"]]
    write_page(tmp_path / "with.png", [row], ["header"], table)
    without, found = read(tmp_path / "without.png"), read(tmp_path / "with.png")
    assert found.shape[0] == without.shape[0] + 3 * LINE_HEIGHT
    assert (found[: without.shape[0] - GAP, :480] == without[:-GAP, :480]).all()
    below = found[without.shape[0] :]
    assert (below == 0).any()
    assert (found[:, -(GAP - 2) :] == 255).all()  # nothing is cut off


def test_zooms_are_interpolated_where_a_row_says_so(tmp_path: Path) -> None:
    picture = (np.indices((30, 30)).sum(0) % 2 * 255).astype(np.uint8)  # no value between
    for smooth in (False, True):
        write_page(tmp_path / "page.png", [Row({"": picture}, smooth=smooth)], [])
        middle = read(tmp_path / "page.png")[60:200, 20:200]
        assert (len(np.unique(middle)) > 20) == smooth


def test_a_colour_bar_goes_from_black_to_white_upwards() -> None:
    bar = colour_bar("-10 %", "0", "+10 %", column=np.zeros((96, 80), np.uint8))
    assert bar.shape == (288, 240)  # as the picture is shown
    column = bar[LINE_HEIGHT + 1 : -LINE_HEIGHT - 1, 10].astype(int)
    assert column[0] > 250 and column[-1] < 5 and (np.diff(column) <= 0).all()
    assert (bar[:, 240 // 8 + 2 :] == 0).any()  # labels
