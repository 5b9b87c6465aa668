"""Files that are plausible and odd: each is used with a warning, or refused with the reason."""

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from banding_removal.config.settings import Settings
from banding_removal.data.filters import VolumeFilter
from banding_removal.data.index import index_folder
from banding_removal.data.stored_mask import lacks_columns
from banding_removal.data.volume import Volume, VolumeError, read_volume
from banding_removal.errors import ConfigError
from banding_removal.runs.datasets import make_datasets
from tests.support.fastmri_files import HEADER, write_volume
from tests.support.odd_files import SIZE, header, odd_volume, phantom_kspace, rss_image

EVERY_FOURTH = np.arange(SIZE) % 4 == 0
OWN_MASK = EVERY_FOURTH | (abs(np.arange(SIZE) - SIZE // 2) < 4)
PADDED = (np.arange(SIZE) >= 6) & (np.arange(SIZE) < SIZE - 8)


def kinds(volume: Volume) -> list[str]:
    return [kind for kind, _ in volume.notes]


def read(tmp_path: Path, **options: Any) -> Volume:
    return read_volume(odd_volume(tmp_path / "v.h5", **options))


def test_a_healthy_file_has_no_note(tmp_path: Path) -> None:
    volume = read(tmp_path)
    assert (volume.notes, volume.measured, volume.acquired) == ((), None, (0, SIZE))


# --- masks ---


@pytest.mark.parametrize(
    ("mask", "keeps"),
    [
        (np.ones(SIZE), np.ones(SIZE)),
        (PADDED, PADDED),
        (np.ones(SIZE), PADDED),
        (np.ones((1, SIZE)), np.ones(SIZE)),
        (np.ones((3, 1, SIZE), np.uint8), np.ones(SIZE)),
    ],
    ids=["ones", "acquired", "ones, padded", "a row", "a row for each slice"],
)
def test_a_mask_that_leaves_out_nothing_is_none(
    tmp_path: Path, mask: np.ndarray, keeps: np.ndarray
) -> None:
    volume = read(tmp_path, kspace=phantom_kspace() * keeps, mask=mask)
    assert (volume.measured, volume.notes) == (None, ())


@pytest.mark.parametrize("mask", [OWN_MASK, EVERY_FOURTH, ~OWN_MASK])
def test_a_mask_beside_full_kspace_is_not_used(tmp_path: Path, mask: np.ndarray) -> None:
    volume = read(tmp_path, mask=mask)
    assert (volume.measured, kinds(volume)) == (None, ["unused_mask"])


@pytest.mark.parametrize(
    "shape",
    [
        *((SIZE,), (1, SIZE), (SIZE, SIZE), (1, 1, SIZE), (SIZE, 1), (1, 1, SIZE, 1)),
        *((4, SIZE, SIZE), (3, 4, SIZE, SIZE)),
    ],
)
def test_a_mask_of_equal_rows_is_the_scanners(tmp_path: Path, shape: tuple[int, ...]) -> None:
    mask = OWN_MASK.reshape(shape) if shape[-1] == 1 else np.broadcast_to(OWN_MASK, shape)
    volume = read(tmp_path, kspace=phantom_kspace() * OWN_MASK, mask=mask, target=None)
    assert volume.measured == "".join("01"[int(c)] for c in OWN_MASK)
    assert volume.notes == ()


@pytest.mark.parametrize(
    "mask", [0.999 * OWN_MASK, OWN_MASK * np.complex64(1), OWN_MASK * np.uint16(65535)]
)
def test_a_mask_is_of_any_type_of_number(tmp_path: Path, mask: np.ndarray) -> None:
    volume = read(tmp_path, kspace=phantom_kspace() * OWN_MASK, mask=mask, target=None)
    assert volume.measured == "".join("01"[int(c)] for c in OWN_MASK)


@pytest.mark.parametrize(
    "mask",
    [
        np.random.default_rng(0).random((SIZE, SIZE)) < 0.3,
        np.stack([np.roll(EVERY_FOURTH, n) for n in range(3)]),
        np.flatnonzero(OWN_MASK),
        OWN_MASK[:-2],
        np.zeros(SIZE),
    ],
    ids=["samples", "a row for each slice", "indices", "of other columns", "zeros"],
)
def test_any_mask_beside_full_kspace_is_not_used(tmp_path: Path, mask: np.ndarray) -> None:
    volume = read(tmp_path, mask=mask)
    assert (volume.measured, kinds(volume)) == (None, ["unused_mask"])


def test_a_mask_with_different_rows_is_refused(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((SIZE, SIZE)) < 0.3
    with pytest.raises(VolumeError, match="only whole columns"):
        read(tmp_path, kspace=phantom_kspace() * mask, mask=mask, target=None)
    rows = np.stack([np.roll(OWN_MASK, n) for n in range(3)])
    with pytest.raises(VolumeError, match="not the same in all rows: only whole columns"):
        read(tmp_path, kspace=phantom_kspace() * rows[:, None, None], mask=rows, target=None)


@pytest.mark.parametrize("mask", [None, OWN_MASK])
def test_slices_that_were_undersampled_differently_are_refused(
    tmp_path: Path, mask: np.ndarray | None
) -> None:
    kspace = phantom_kspace() * OWN_MASK
    kspace[2] = np.roll(kspace[2], 1, axis=-1)
    with pytest.raises(VolumeError, match="slice 2 of kspace holds data in columns that other"):
        read(tmp_path, kspace=kspace, mask=mask, target=None)


@pytest.mark.parametrize("place", [1, 2])
def test_slices_that_lack_columns_of_others_are_refused(tmp_path: Path, place: int) -> None:
    kspace = phantom_kspace() * OWN_MASK
    kspace[place, ..., ::8] = 0
    message = f"slice {place} of kspace lacks columns that other slices have: write the slice again"
    with pytest.raises(VolumeError, match=message):
        read(tmp_path, kspace=kspace, mask=OWN_MASK, target=None)


def test_a_slice_that_lacks_columns_of_a_full_volume_is_refused_when_it_is_read(
    settings: Settings,
) -> None:
    path = settings.data_path / "multicoil_train" / "a.h5"
    kspace = phantom_kspace() * PADDED
    kspace[1, ..., 5:30:2] = 0
    odd_volume(path, kspace=kspace, target=rss_image(phantom_kspace() * PADDED))
    for probability in (0.0, 1.0):
        data = make_datasets(replace(settings, rotate_probability=probability))[0]
        assert (data.volumes[0].measured, data.volumes[0].notes) == (None, ())
        with pytest.raises(
            VolumeError, match=r"a\.h5: k-space of slice 1 lacks columns that other"
        ):
            data[1]
        assert data[2].masked_kspace.any()


def with_zeros(*places: Any) -> np.ndarray:
    kspace = phantom_kspace()
    for place in places:
        kspace[place] = 0
    return kspace[0]


@pytest.mark.parametrize(
    "kspace",
    [
        with_zeros(),
        with_zeros((..., slice(40, None))),
        with_zeros((..., slice(9)), (..., slice(55, None))),
        with_zeros((..., slice(30, 36), slice(9, 50))),
        with_zeros((..., slice(20, None), slice(None))),
        with_zeros((..., slice(10, 16))),
        with_zeros(...),
    ],
    ids=["full", "partial Fourier", "padding", "rows", "few rows", "lost lines", "empty"],
)
def test_healthy_slices_lack_no_columns(kspace: np.ndarray) -> None:
    assert not lacks_columns(kspace)


def test_columns_that_hold_rounding_errors_count_as_not_measured(tmp_path: Path) -> None:
    kspace = phantom_kspace() * OWN_MASK
    images = np.fft.ifft2(kspace).astype(np.complex64)
    kspace = np.fft.fft2(images).astype(np.complex64)
    assert abs(kspace[..., ~OWN_MASK]).any()
    volume = read(tmp_path, kspace=kspace, mask=OWN_MASK, target=None)
    assert (volume.measured, volume.notes) == ("".join("01"[int(c)] for c in OWN_MASK), ())


def test_the_target_of_undersampled_kspace_is_not_its_image(tmp_path: Path) -> None:
    kspace, full = phantom_kspace() * OWN_MASK, rss_image(phantom_kspace())
    assert kinds(read(tmp_path, kspace=kspace, mask=OWN_MASK, target=full)) == []
    assert kinds(read(tmp_path, kspace=kspace, mask=OWN_MASK)) == ["aliased_target"]


def test_a_slice_that_is_empty_does_not_hide_the_others(tmp_path: Path) -> None:
    kspace, full = phantom_kspace(), rss_image(phantom_kspace())
    kspace[:2] = 0
    volume = read(tmp_path, kspace=kspace, target=full, mask=OWN_MASK)
    assert (volume.measured, kinds(volume)) == (None, ["unused_mask"])
    with pytest.raises(VolumeError, match="not centred"):
        read(tmp_path, kspace=corner(kspace), target=full)


@pytest.mark.parametrize("mask", [None, np.ones(SIZE)])
def test_undersampled_kspace_without_a_mask_that_says_so_counts_as_undersampled(
    tmp_path: Path, mask: np.ndarray | None
) -> None:
    kspace = phantom_kspace() * (OWN_MASK & PADDED)
    volume = read(tmp_path, kspace=kspace, mask=mask, target=rss_image(phantom_kspace()))
    assert volume.measured == "".join("01"[int(c)] for c in OWN_MASK & PADDED)
    assert kinds(volume) == ["undeclared_mask"]


def test_a_few_lost_lines_leave_a_volume_fully_sampled(tmp_path: Path) -> None:
    kspace = phantom_kspace()
    kspace[..., [5, 21]] = 0
    assert (read(tmp_path, kspace=kspace).measured, read(tmp_path, kspace=kspace).notes) == (
        None,
        (),
    )


def test_samples_missing_in_both_directions_are_refused(tmp_path: Path) -> None:
    pattern = np.random.default_rng(0).random((SIZE, SIZE)) < 0.3
    with pytest.raises(VolumeError, match="samples in kspace are zero"):
        read(tmp_path, kspace=phantom_kspace() * pattern, target=None)


@pytest.mark.parametrize(
    "mask",
    [np.roll(EVERY_FOURTH, 1), np.roll(OWN_MASK, -10) & (np.arange(SIZE) != SIZE // 2)],
    ids=["no calibration lines", "beside the centre"],
)
def test_a_volume_without_its_centre_is_not_reconstructed(
    tmp_path: Path, settings: Settings, mask: np.ndarray
) -> None:
    for part in ("train", "val"):
        folder = settings.data_path / f"multicoil_{part}"
        odd_volume(folder / "odd.h5", kspace=phantom_kspace() * mask, mask=mask)
    settings = replace(settings, acs_lines=(4,))
    with pytest.raises(VolumeError, match=r"odd\.h5: the scanner did not measure the centre"):
        make_datasets(settings)
    train_set, _ = make_datasets(replace(settings, skip_bad_volumes=True))
    assert "odd.h5" not in [volume.name for volume in train_set.volumes]


def test_one_line_at_the_centre_gets_a_warning(tmp_path: Path) -> None:
    volume = read(tmp_path, kspace=phantom_kspace() * EVERY_FOURTH, mask=EVERY_FOURTH, target=None)
    assert volume.notes == (("few_centre_lines", "1"),)


# --- orientations ---


@pytest.fixture
def measured(settings: Settings) -> Settings:
    """Settings of a data set that the scanner undersampled."""
    for path in (settings.data_path / "multicoil_train").glob("*.h5"):
        write_volume(path, mask=abs(np.arange(28) - 14) < 5)
    return settings


ADVERSARY: dict[str, Any] = {"stage": "train", "adversary": "shallow"}


def test_training_is_refused_if_no_slice_can_be_transposed(measured: Settings) -> None:
    with pytest.raises(ConfigError, match=r"=0\.5 .* all 3 training volumes were undersampled"):
        make_datasets(measured)
    assert len(make_datasets(replace(measured, rotate_probability=0.0))[0]) == 12


@pytest.mark.parametrize(("probability", "only"), [(0.0, "upright"), (1.0, "transposed")])
def test_an_adversary_that_would_see_one_label_is_refused(
    settings: Settings, probability: float, only: str
) -> None:
    settings = replace(settings, rotate_probability=probability, **ADVERSARY)
    with pytest.raises(ConfigError, match=f"all training slices are {only}"):
        make_datasets(settings)
    make_datasets(replace(settings, rotate_probability=0.5))
    make_datasets(replace(settings, paired=True))


def test_the_slices_that_are_left_decide_whether_any_can_be_transposed(settings: Settings) -> None:
    folder = settings.data_path / "multicoil_train"  # volumes of two slices
    write_volume(folder / "long.h5", slices=4, mask=abs(np.arange(28) - 14) < 5)
    make_datasets(settings)
    with pytest.raises(ConfigError, match="all 1 training volumes were undersampled"):
        make_datasets(replace(settings, train_slices=(2, None)))


# --- axes ---


def swap(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.swapaxes(-2, -1))


def corner(kspace: np.ndarray) -> np.ndarray:
    return np.fft.ifftshift(kspace, axes=(-2, -1))


WIDE = phantom_kspace(size=(64, 40))
SQUARE = phantom_kspace()
PARTIAL = SQUARE * PADDED
FOUR = phantom_kspace(slices=4)
ROWS_LEFT_OUT = SQUARE * OWN_MASK[:, None]

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "swapped": ({"kspace": swap(WIDE), "header": header(64, 40)}, "the axes are swapped"),
    "swapped, readout oversampling removed": (
        {"kspace": swap(WIDE), "header": header(128, 40)},
        "the axes are swapped",
    ),
    "swapped, square, target upright": (
        {"kspace": swap(SQUARE), "target": rss_image(SQUARE)},
        "transposed against the image",
    ),
    "swapped, square, padded": (
        {"kspace": swap(PARTIAL), "header": header(acquired=(6, SIZE - 8))},
        "rows of kspace are zero and no column is: the axes are swapped",
    ),
    "undersampled rows": (
        {"kspace": ROWS_LEFT_OUT, "target": None},
        "rows of kspace are zero and no column is: the axes are swapped",
    ),
    "coils last, by the target": (
        {"kspace": np.moveaxis(SQUARE, 1, -1), "target": rss_image(SQUARE), "header": None},
        "coils seem to come last",
    ),
    "coils between, by the target": (
        {"kspace": np.moveaxis(SQUARE, 1, 2), "target": rss_image(SQUARE), "header": None},
        "coils seem to come last or between",
    ),
    "image first, by the header": (
        {
            "kspace": np.moveaxis(SQUARE, (0, 1), (2, 3)),
            **{"target": None, "header": header(SIZE, SIZE)},
        },
        "the axes are in another order",
    ),
    "slices of the target in reverse order": (
        {"target": rss_image(SQUARE)[::-1]},
        "the target is not the image of kspace",
    ),
    "coils last, by the header": (
        {"kspace": np.moveaxis(SQUARE, 1, -1), "target": None, "header": header(SIZE, SIZE)},
        "coils seem to come last",
    ),
    "coils last, by their number": (
        {"kspace": np.zeros((1, 200, 64, 8), np.complex64), "target": None, "header": None},
        "coils seem to come last",
    ),
    "zero frequency in the corner": (
        {"kspace": corner(SQUARE), "target": rss_image(SQUARE)},
        "not centred: its middle rows",
    ),
    "zero frequency at the border, no target": (
        {"kspace": np.fft.ifftshift(SQUARE, axes=-1), "target": None},
        "not centred: its middle columns",
    ),
    "image not shifted": (
        {"target": np.fft.fftshift(rss_image(SQUARE), axes=(-2, -1))},
        "the target is not the image of kspace",
    ),
    "image space along readout": (
        {"kspace": np.fft.fftshift(np.fft.ifft(SQUARE, axis=-2), -2), "target": rss_image(SQUARE)},
        "the target is not the image of kspace",
    ),
    "slices as coils": (
        {"kspace": FOUR.swapaxes(0, 1), "target": rss_image(FOUR)},
        "slices and coils are swapped",
    ),
    "zeros": ({"kspace": np.zeros_like(SQUARE), "target": rss_image(SQUARE)}, "kspace is zero or"),
    "zeros, an end slice of the target, too": (
        {"kspace": np.zeros_like(SQUARE), "target": rss_image(SQUARE) * [[[1]], [[1]], [[0]]]},
        "and the target is not: it was not written",
    ),
    "zeros and NaN": (
        {"kspace": SQUARE * np.array([np.nan, 0, 0])[:, None, None, None], "target": None},
        "kspace is zero or not finite in every slice that was looked at",
    ),
    "NaN in a coil": (
        {"kspace": np.where(np.arange(4)[:, None, None] == 2, np.nan, SQUARE), "target": None},
        "kspace is zero or not finite in every slice",
    ),
    "target of another resolution": (
        {"target": rss_image(SQUARE)[:, ::2, ::2]},
        "or of another resolution",
    ),
    "target of another scan": (
        {"target": rss_image(phantom_kspace(seed=1))},
        "the target is not the image of kspace",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_axes_in_another_order_are_refused(tmp_path: Path, name: str) -> None:
    options, message = REFUSED[name]
    with pytest.raises(VolumeError, match=message):
        read(tmp_path, **{"kspace": SQUARE, **options})


TARGET = rss_image(SQUARE)
FILTER = (0, 1, 1)
UNEQUAL = phantom_kspace(slices=4, seed=11)  # so much that no slice looks like all of them
DEAD_COIL = (np.arange(4) != 1)[:, None, None]  # with the number of the slice that is compared
SHIFTED = np.roll(SQUARE, (3, -4), axis=(-2, -1))
HALF_PIXEL = np.exp(1j * np.pi * np.arange(SIZE) / SIZE)
NOTED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "upside down": ({"target": TARGET[:, ::-1]}, ["turned_target"]),
    "mirrored": ({"target": TARGET[..., ::-1]}, ["turned_target"]),
    "by the other transform": ({"kspace": SQUARE.conj()[..., ::-1, ::-1]}, []),
    "turned": ({"target": TARGET[:, ::-1, ::-1]}, ["turned_target"]),
    "shifted": ({"target": np.roll(TARGET, 2, -1)}, ["shifted_target"]),
    "filtered": ({"target": gaussian_filter(TARGET, FILTER)}, ["other_target"]),
    "in another unit": ({"target": TARGET / TARGET.max()}, ["other_unit"]),
    "in another unit, turned": (
        {"target": TARGET[:, ::-1] / TARGET.max()},
        ["turned_target", "other_unit"],
    ),
    "as many slices as coils": (
        {"kspace": UNEQUAL, "target": rss_image(UNEQUAL) / rss_image(UNEQUAL).max()},
        ["other_unit"],
    ),
    "as many slices as coils, filtered": (
        {"kspace": FOUR, "target": gaussian_filter(rss_image(FOUR), FILTER)},
        ["other_target"],
    ),
    "as many slices as coils, one of them dead": (
        {
            "kspace": FOUR * DEAD_COIL,
            "target": gaussian_filter(rss_image(FOUR * DEAD_COIL), FILTER),
        },
        ["other_target"],
    ),
    "centre off by a few samples": ({"kspace": SHIFTED, "target": TARGET}, []),
    "larger": (
        {"kspace": WIDE, "target": np.pad(rss_image(WIDE), ((0, 0), (0, 0), (12, 12)))},
        ["larger_target"],
    ),
    "other matrix": ({"header": header(SIZE, 60)}, ["other_matrix"]),
    "oversampling removed": ({"header": header(2 * SIZE, SIZE)}, []),
    "centre far off": ({"kspace": np.roll(SQUARE, 12, -1), "target": TARGET}, ["off_centre"]),
    "image space along readout": (
        {"kspace": np.fft.fftshift(np.fft.ifft(SQUARE, axis=-2), -2), "target": None},
        ["even_axis"],
    ),
    "radial": ({"kspace": np.repeat(SQUARE[:, :, 32:33], SIZE, 2), "target": None}, ["even_axis"]),
    "by half a pixel": ({"kspace": SQUARE * HALF_PIXEL, "target": TARGET}, ["other_target"]),
    "constant": ({"target": np.ones_like(TARGET)}, ["other_target"]),
    "coils between": (
        {"kspace": np.moveaxis(SQUARE, 1, 2), "target": None, "header": None},
        ["no_header", "swapped_coils", "even_axis"],
    ),
    "receiver channels": ({"header": header(channels=3), "target": None}, ["swapped_coils"]),
    "stale max": ({"max": 350.0}, ["wrong_max"]),
    "max of zero": ({"max": 0.0}, ["wrong_max"]),
    "max that is no number": ({"max": np.nan}, ["wrong_max"]),
    "max printed and read": ({"max": float(f"{TARGET.max():.5g}")}, []),
    "without max": ({"max": None}, []),
}


@pytest.mark.parametrize("name", NOTED)
def test_what_is_odd_and_can_be_used_is_noted(tmp_path: Path, name: str) -> None:
    options, expected = NOTED[name]
    options = {"kspace": SQUARE, **options}
    volume = read(tmp_path, **options)
    assert kinds(volume) == expected
    if volume.target_key is not None:
        with h5py.File(volume.path) as file:
            largest = file["reconstruction_rss"][()].max()
        assert volume.data_range == pytest.approx(float(largest))


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128, ">c8"])
def test_kspace_of_any_complex_type_is_read(settings: Settings, dtype: Any) -> None:
    path = odd_volume(settings.data_path / "multicoil_train" / "a.h5", kspace=SQUARE)
    with h5py.File(path, "r+") as file:
        del file["kspace"]
        file["kspace"] = SQUARE.astype(dtype)
    data = make_datasets(replace(settings, rotate_probability=0.0))[0]
    assert data.volumes[0].notes == ()
    mask = data[1].mask[0, 0].numpy()
    np.testing.assert_array_equal(data[1].masked_kspace, SQUARE[1] * mask)


@pytest.mark.parametrize(
    "stored",
    [
        np.stack([SQUARE.real, SQUARE.imag], -1),
        np.zeros(SQUARE.shape, [("real", "f4"), ("imag", "f4")]),
    ],
)
def test_real_and_imaginary_parts_are_refused_with_what_to_do(
    tmp_path: Path, stored: np.ndarray
) -> None:
    with h5py.File(odd_volume(tmp_path / "v.h5"), "r+") as file:
        del file["kspace"]
        file["kspace"] = stored
    with pytest.raises(VolumeError, match="expected complex64: combine real and imaginary parts"):
        read_volume(tmp_path / "v.h5")


def test_a_compression_that_is_not_installed_is_named(tmp_path: Path) -> None:
    path = odd_volume(tmp_path / "v.h5", kspace=SQUARE)
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_chunk(SQUARE.shape)
    made.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))  # Zstandard
    with h5py.File(path, "r+") as file:
        del file["kspace"]
        space = h5py.h5s.create_simple(SQUARE.shape)
        kind = h5py.h5t.py_create(SQUARE.dtype)
        stored = h5py.h5d.create(file.id, b"kspace", kind, space, dcpl=made)
        stored.write_direct_chunk((0, 0, 0, 0), SQUARE.tobytes())
    with pytest.raises(VolumeError, match="compressed by the HDF5 filter 'number 32015'"):
        read_volume(path)


def test_targets_of_whole_numbers_are_read(settings: Settings) -> None:
    path = odd_volume(settings.data_path / "multicoil_train" / "a.h5", kspace=SQUARE, max=None)
    whole = np.round(1e7 * TARGET).astype(np.int16)
    with h5py.File(path, "r+") as file:
        del file["reconstruction_rss"]
        file["reconstruction_rss"] = whole
    data = make_datasets(replace(settings, rotate_probability=0.0))[0]
    assert (data.volumes[0].data_range, kinds(data.volumes[0])) == (whole.max(), ["other_unit"])
    np.testing.assert_array_equal(data.targets(0), whole)


def test_columns_of_a_header_for_another_matrix_are_not_used(tmp_path: Path) -> None:
    assert read(tmp_path, header=header(SIZE, 40, acquired=(2, 38))).acquired is None


def test_empty_slices_and_slices_of_noise_are_not_judged(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = (rng.standard_normal(SQUARE.shape) + 1j * rng.standard_normal(SQUARE.shape)) * 1e-6
    for kspace in (noise.astype(np.complex64), np.zeros_like(SQUARE)):
        target = np.maximum(rss_image(kspace), 1e-9)
        assert read(tmp_path, kspace=kspace, target=target).notes == ()


@pytest.mark.parametrize("scale", [1e-13, 1e19])
def test_the_unit_of_a_file_does_not_matter_up_to_the_limits_of_single_precision(
    tmp_path: Path, scale: float
) -> None:
    kspace = (SQUARE * np.float32(scale)).astype(np.complex64)
    target = (TARGET * np.float64(scale)).astype(np.float32)
    assert read(tmp_path, kspace=kspace, target=target).notes == ()


@pytest.mark.parametrize("scale", [1e-16, 1e22])
def test_a_unit_beyond_single_precision_is_refused(tmp_path: Path, scale: float) -> None:
    kspace = (SQUARE * np.float32(scale)).astype(np.complex64)
    target = (TARGET * np.float64(scale)).astype(np.float32)
    with pytest.raises(VolumeError, match=r"largest value of reconstruction_rss is .* rescale"):
        read(tmp_path, kspace=kspace, target=target)


@pytest.mark.parametrize("unit", [1 / 64, 1 / float(TARGET.max()), 1e10])
def test_kspace_is_brought_into_the_unit_of_its_target(settings: Settings, unit: float) -> None:
    path = settings.data_path / "multicoil_train" / "a.h5"
    odd_volume(path, kspace=SQUARE, target=unit * TARGET)
    data = make_datasets(replace(settings, rotate_probability=0.0))[0]
    assert kinds(data.volumes[0]) == ["other_unit"]
    example = data[1]
    expected = unit * SQUARE[1] * example.mask[0, 0].numpy()
    np.testing.assert_allclose(example.masked_kspace, expected, rtol=1e-4, atol=1e-9 * unit)


@pytest.mark.parametrize("unit", [1.0, 1.3, 1e-3])
def test_targets_that_are_scaled_slice_by_slice_are_refused(tmp_path: Path, unit: float) -> None:
    """Also if the slice that is compared first has nearly the unit of k-space."""
    scales = unit * np.array([1.3, 1.0, 0.8], np.float32)[:, None, None]
    with pytest.raises(VolumeError, match=r"different units: that of slice 2 .* of slice 0"):
        read(tmp_path, kspace=SQUARE, target=scales * TARGET)


def noise_like(kspace: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal(kspace.shape) + 1j * rng.standard_normal(kspace.shape)


@pytest.mark.parametrize("unit", [1.3, 1 / 64])
def test_noise_does_not_tell_the_unit_of_a_target(tmp_path: Path, unit: float) -> None:
    kspace, without_anatomy = phantom_kspace(slices=5), [0, 3, 4]
    kspace[without_anatomy] = 1e-6 * noise_like(kspace)[without_anatomy]
    target = unit * rss_image(kspace)
    other_unit = ["other_unit"] * (unit < 0.5)
    filtered = gaussian_filter(target, FILTER)
    assert kinds(read(tmp_path, kspace=kspace, target=filtered)) == ["other_target", *other_unit]
    target[without_anatomy] = 0.5 * filtered[without_anatomy]
    assert kinds(read(tmp_path, kspace=kspace, target=target)) == other_unit


@pytest.mark.parametrize("unit", [1.3, 1 / 64])
def test_denoised_and_shifted_targets_do_not_tell_their_unit(tmp_path: Path, unit: float) -> None:
    denoised, slices = unit * TARGET, np.arange(3)[:, None, None, None]
    noisy = SQUARE + 2e-5 * (1 + slices) * noise_like(SQUARE)
    assert kinds(read(tmp_path, kspace=noisy, target=denoised))[0] == "other_target"
    shifts = ((1, 1), (2, 2), (4, 4))
    shifted = np.stack(
        [np.roll(image, by, (0, 1)) for image, by in zip(denoised, shifts, strict=True)]
    )
    assert kinds(read(tmp_path, kspace=SQUARE, target=shifted))[0] == "shifted_target"


def test_a_turned_target_tells_its_unit(tmp_path: Path) -> None:
    volume = read(tmp_path, kspace=SQUARE, target=TARGET[:, ::-1, ::-1] / 64)
    assert volume.kspace_factor == pytest.approx(1 / 64)


def test_undersampled_kspace_does_not_give_the_unit_of_its_target(tmp_path: Path) -> None:
    volume = read(tmp_path, kspace=SQUARE * OWN_MASK, target=1e4 * TARGET, mask=OWN_MASK)
    assert (volume.kspace_factor, kinds(volume)) == (1.0, ["other_unit_undersampled"])


def test_a_unit_in_which_the_l1_term_dominates_gets_a_warning(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    make_datasets(settings)
    assert not caplog.text
    kspace = SQUARE * 1e10
    odd_volume(settings.data_path / "multicoil_train" / "large.h5", kspace=kspace)
    make_datasets(settings)
    assert "the L1 term outweighs SSIM" in caplog.text
    caplog.clear()
    make_datasets(replace(settings, l1_weight=0.0))
    assert not caplog.text


# --- headers and attributes ---

XML = header().decode()
HEADERS: dict[str, tuple[Any, list[str]]] = {
    "none": (None, ["no_header"]),
    "empty": (b"", ["no_header"]),
    "spaces": (b" \n", ["no_header"]),
    "null": (h5py.Empty("S9"), ["no_header"]),
    "newline first": (("\n" + XML).encode(), []),
    "says UTF-16": (('<?xml version="1.0" encoding="utf-16"?>' + XML).encode(), []),
    "Latin-1": (XML.replace("Aera", "Universit\u00e4t").encode("latin-1"), []),
    "empty number": (XML.replace("1.494", "").encode(), []),
    "decimal comma": (XML.replace("1.494", "1,5").encode(), ["unclear_header"]),
    "Python number": (XML.replace("1.494", "NP.FLOAT32(1.5)").encode(), ["unclear_header"]),
    "cut off": (XML[:-40].encode(), ["unclear_header"]),
    "bytes": (np.frombuffer(header(), np.uint8), []),
    "a column of bytes": (np.frombuffer(header(), np.uint8)[:, None], []),
    "characters of MATLAB": (np.frombuffer(header(), np.uint8).astype(np.uint16)[:, None], []),
    "characters of MATLAB, big-endian": (np.frombuffer(header(), np.uint8).astype(">u2"), []),
    "number": (5, ["unclear_header"]),
    "not XML": (b"{'systemModel': 'Aera'}", ["unclear_header"]),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_volume_is_used_whatever_its_header(
    tmp_path: Path, settings: Settings, name: str
) -> None:
    head, expected = HEADERS[name]
    for part in ("train", "val"):
        for path in (settings.data_path / f"multicoil_{part}").glob("*.h5"):
            path.unlink()
        odd_volume(settings.data_path / f"multicoil_{part}" / "v.h5", header=head)
    anything = VolumeFilter(square_target=True)
    settings = replace(settings, train_filter=anything, val_filter=anything)
    for volumes in (make_datasets(settings)[0].volumes, make_datasets(settings)[1].volumes):
        assert [kinds(volume) for volume in volumes] == [expected]


def test_padding_attributes_count_as_the_headers_columns(tmp_path: Path) -> None:
    padding = {"padding_left": np.array([6]), "padding_right": SIZE - 8}
    assert read(tmp_path, header=None, **padding).acquired == (6, SIZE - 8)
    assert read(tmp_path, **padding).acquired == (0, SIZE)  # the header goes first
    for right in (900, 3, -1, np.nan, np.inf, "56", np.arange(2)):
        assert read(tmp_path, header=None, padding_left=6, padding_right=right).acquired is None


def test_attributes_may_be_arrays_of_one_element(tmp_path: Path) -> None:
    parts = {"max": np.array([[TARGET.max()]]), "acquisition": np.array([b"AXT2\n"])}
    volume = read(tmp_path, **parts)
    assert (volume.acquisition, volume.notes) == ("AXT2", ())
    assert read(tmp_path, acquisition=np.array(["AXT1PRE"], object)).acquisition == "AXT1"


def test_targets_with_a_channel_are_read(settings: Settings) -> None:
    target = rss_image(SQUARE)[:, None]
    odd_volume(settings.data_path / "multicoil_train" / "a.h5", kspace=SQUARE, target=target)
    data = make_datasets(replace(settings, rotate_probability=0.0))[0]
    assert data.volumes[0].target_size == (SIZE, SIZE)
    found = data[1].target
    assert found is not None
    np.testing.assert_array_equal(found[0], target[1, 0])
    np.testing.assert_array_equal(data.targets(0), target[:, 0])


def test_nothing_left_by_a_filter_says_what_was_found(settings: Settings) -> None:
    folder = settings.data_path / "multicoil_train"
    for path in folder.glob("*.h5"):
        write_volume(path, header=HEADER.replace("{field_strength}", "").format(**EMPTY))
    write_volume(folder / "low.h5", field_strength=0.3)
    found = (
        r"field strengths found: none given \(3 volumes\), 0\.3 T \(1\); "
        r"train_filter\.magnet=null takes all"
    )
    with pytest.raises(ConfigError, match=found):
        make_datasets(settings)


EMPTY = {
    "scanner": "Aera",
    **{"height": 32, "width": 28, "recon_height": 32, "recon_width": 28},
    **{"maximum": 22, "center": 12},
}


# --- folders ---


def test_what_is_there_instead_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "knee_multicoil_train").mkdir()
    (tmp_path / "knee_multicoil_train" / "v.hdf5").touch()
    for folder, says in (
        ("multicoil_train", f"{tmp_path} holds knee_multicoil_train"),
        ("knee_multicoil_train", r"holds no \*\.h5 file; .*knee_multicoil_train holds v\.hdf5"),
        ("nowhere/multicoil_train", f"neither is {tmp_path}/nowhere"),
    ):
        with pytest.raises(FileNotFoundError, match=says):
            index_folder(tmp_path / folder, cache_folder=tmp_path / "cache")


def test_a_path_that_is_no_text_is_refused(tmp_path: Path) -> None:
    good = odd_volume(tmp_path / "data" / "v.h5")
    good.rename(tmp_path / "data" / os.fsdecode(b"Kn\xef.h5"))
    odd_volume(good)
    with pytest.raises(
        VolumeError, match=r"1 unusable.* other 1 .*\n.*Kn\\xef\.h5: .*: rename it$"
    ):
        index_folder(tmp_path / "data", cache_folder=tmp_path / "cache")


def test_validation_volumes_that_are_training_volumes_are_logged(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    make_datasets(settings)
    assert not caplog.text
    path = next((settings.data_path / "multicoil_train").glob("*.h5"))
    shutil.copy(path, settings.data_path / "multicoil_val")
    make_datasets(settings)
    assert f"1 of 3 validation volumes seem to be training volumes as well ({path.name})" in (
        caplog.text
    )


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    odd_volume(tmp_path / "data" / "v.h5")
    (tmp_path / "data" / "._v.h5").write_bytes(b"\0\5\26\7" + bytes(60))
    (tmp_path / "data" / ".#v.h5").symlink_to("somebody@somewhere")
    volumes = index_folder(tmp_path / "data", cache_folder=tmp_path / "cache")
    assert [volume.name for volume in volumes] == ["v.h5"]
    (tmp_path / "data" / "v.h5").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no \*\.h5 file"):
        index_folder(tmp_path / "data", cache_folder=tmp_path / "cache")


def test_each_kind_of_oddity_is_one_warning_with_a_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    makers: list[Callable[[Path], Path]] = [
        lambda path: odd_volume(path, mask=OWN_MASK),
        lambda path: odd_volume(path, mask=OWN_MASK, max=3.0),
        lambda path: odd_volume(path, max=350.0),
        lambda path: odd_volume(path),
    ]
    for number, make in enumerate(makers):
        make(tmp_path / "data" / f"v{number}.h5")
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            index_folder(tmp_path / "data", cache_folder=tmp_path / "cache")
        first, second = (record.getMessage() for record in caplog.records)
        assert first.startswith("data: in 2 of 4 volumes k-space holds data in columns that")
        assert first.endswith("(v0.h5: 64 of 64 columns hold data, the mask has 22, ...)")
        assert second.startswith("data: in 2 of 4 volumes the attribute max is not the largest")
