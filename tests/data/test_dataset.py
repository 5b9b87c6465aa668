import multiprocessing
import os
import pickle
import re
import traceback
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from banding_removal.data import handle_cache
from banding_removal.data.batch import Batch, Example, collate, joined
from banding_removal.data.dataset import Draw, SliceDataset
from banding_removal.data.handle_cache import HandleCache
from banding_removal.data.masks import MaskSampler, acquired_columns, seeded_by_name
from banding_removal.data.sampler import EpochSampler
from banding_removal.data.volume import VolumeError, read_volume
from tests.support.fastmri_files import make_kspace, write_volume

QUADRATURE = MaskSampler(kind="quadrature", accelerations=(4,), acs=(4,))
EQUISPACED = MaskSampler(kind="equispaced", accelerations=(4,), acs=(4,))
RANDOM = MaskSampler(kind="random", accelerations=(4,), acs=(2,))
EVERYTHING = MaskSampler(kind="quadrature", accelerations=(1,), acs=(4,))
# Torch warns where there are fewer cores than workers.
with_workers = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def dataset(*paths: Path, masks: MaskSampler = QUADRATURE, **options: Any) -> SliceDataset:
    options = {"seed": 0, **options}
    return SliceDataset([read_volume(path) for path in paths], masks, **options)


def stored(path: Path, key: str = "kspace") -> Tensor:
    with h5py.File(path, "r", locking=False) as file:  # the dataset may have it open
        return torch.from_numpy(file[key][()])


def load(source: SliceDataset, *, workers: int = 0, shuffle: bool = False) -> Iterator[Batch]:
    loader = DataLoader(
        source,
        batch_sampler=EpochSampler(source, batch_size=1, seed=0, shuffle=shuffle),
        collate_fn=collate,
        num_workers=workers,
    )
    yield from loader


@pytest.fixture(scope="module")
def four_volumes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("four")
    return [
        write_volume(folder / f"{name}.h5", slices=slices, size=(16, 20), target_size=(12, 14))
        for name, slices in zip("abcd", (8, 7, 8, 5), strict=True)
    ]


@pytest.fixture(scope="module")
def oblong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with 5 columns of padding on each side, nothing square."""
    return write_volume(
        tmp_path_factory.mktemp("oblong") / "file1.h5",
        size=(32, 28),
        target_size=(24, 20),
        acquired=(5, 23),
    )


# Shapes and values


@pytest.mark.parametrize("rotated", [False, True])
def test_shapes_and_types_of_an_example(oblong: Path, rotated: bool) -> None:
    example = dataset(oblong, rotate_probability=float(rotated))[1]
    kspace, target = ((28, 32), (20, 24)) if rotated else ((32, 28), (24, 20))
    assert example.target is not None
    assert example.masked_kspace.shape == (3, *kspace)
    assert example.mask.shape == (1, 1, kspace[1])
    assert example.target.shape == (1, *target)
    assert example.masked_kspace.dtype == torch.complex64
    assert example.mask.dtype == torch.bool
    assert example.target.dtype == torch.float32
    assert example.masked_kspace.is_contiguous()
    assert example.target.is_contiguous()
    assert example.acs_lines == 4
    assert example.rotated is rotated
    assert (example.name, example.slice_index) == ("file1.h5", 1)
    assert example.data_range == pytest.approx(float(stored(oblong, "reconstruction_rss").max()))


@pytest.mark.parametrize("rotated", [False, True])
def test_single_coil_slices_get_a_coil_axis(tmp_path: Path, rotated: bool) -> None:
    path = write_volume(tmp_path / "a.h5", coils=None, target_size=(24, 20))
    example = dataset(path, masks=EVERYTHING, rotate_probability=float(rotated))[2]
    kspace, target = stored(path)[2], stored(path, "reconstruction_esc")[2]
    if rotated:
        kspace, target = kspace.T, target.T
    assert example.target is not None
    assert torch.equal(example.masked_kspace, kspace[None])
    assert torch.equal(example.target, target[None])


@pytest.mark.parametrize("offsets_from_data", [True, False])
@pytest.mark.parametrize("masks", [QUADRATURE, EQUISPACED, RANDOM])
def test_masked_kspace_is_exactly_the_kspace_times_the_mask(
    oblong: Path, masks: MaskSampler, offsets_from_data: bool
) -> None:
    source = dataset(
        oblong, masks=masks, rotate_probability=0.5, offsets_from_data=offsets_from_data
    )
    kspace = stored(oblong)
    labels = set()
    for epoch in range(5):
        for index in range(4):
            example = source[Draw(epoch=epoch, index=index)]
            full = kspace[index].mT if example.rotated else kspace[index]
            assert torch.equal(example.masked_kspace, full * example.mask)
            assert not torch.equal(example.masked_kspace, full)
            labels.add(example.rotated)
    assert labels == {False, True}


def test_label_says_whether_the_slice_is_transposed_and_twice_is_the_identity(oblong: Path) -> None:
    source = dataset(oblong, masks=EVERYTHING, rotate_probability=0.5)
    kspace, targets = stored(oblong), stored(oblong, "reconstruction_rss")
    labels = []
    for epoch in range(5):
        for index in range(4):
            example = source[Draw(epoch=epoch, index=index)]
            assert example.target is not None
            upright, target = example.masked_kspace, example.target[0]
            if example.rotated:
                upright, target = upright.mT, target.mT
            assert torch.equal(upright, kspace[index])
            assert torch.equal(target, targets[index])
            labels.append(example.rotated)
    assert {False, True} == set(labels)


def test_index_alone_is_the_draw_of_epoch_0(oblong: Path) -> None:
    source = dataset(oblong, masks=RANDOM, rotate_probability=0.5, redraw_masks=True)
    for index in range(4):
        assert_equal(source[index], source[Draw(epoch=0, index=index)])


# Masks


@pytest.mark.parametrize("offsets_from_data", [True, False])
@pytest.mark.parametrize("masks", [QUADRATURE, EQUISPACED, RANDOM, EVERYTHING])
def test_mask_is_never_outside_the_acquired_columns(
    oblong: Path, masks: MaskSampler, offsets_from_data: bool
) -> None:
    source = dataset(oblong, masks=masks, offsets_from_data=offsets_from_data, redraw_masks=True)
    for epoch in range(10):
        example = source[Draw(epoch=epoch, index=0)]
        columns = example.mask.flatten()
        assert not columns[:5].any()
        assert not columns[23:].any()
        first = (28 - example.acs_lines + 1) // 2
        assert columns[first : first + example.acs_lines].all()


@pytest.mark.parametrize("offsets_from_data", [True, False])
def test_transposed_slice_does_not_take_the_padding_of_the_other_axis(
    oblong: Path, offsets_from_data: bool
) -> None:
    source = dataset(
        oblong, masks=EVERYTHING, rotate_probability=1, offsets_from_data=offsets_from_data
    )
    example = source[0]
    assert example.mask.all()  # readout is measured in full
    assert not example.masked_kspace[:, :5].any()
    assert not example.masked_kspace[:, 23:].any()


@pytest.mark.parametrize(
    ("rotated", "expected"),
    [
        # 5::4 from the first acquired column, and the centre 12 .. 15 of 28
        (False, [5, 9, 12, 13, 14, 15, 17, 21]),
        # 0::4, and the centre 14 .. 17 of 32
        (True, [0, 4, 8, 12, 14, 15, 16, 17, 20, 24, 28]),
    ],
)
def test_lines_start_at_the_first_acquired_column_of_the_data(
    oblong: Path, rotated: bool, expected: list[int]
) -> None:
    example = dataset(oblong, masks=EQUISPACED, rotate_probability=float(rotated))[0]
    assert example.mask.flatten().nonzero().flatten().tolist() == expected


def test_acquired_columns_come_from_the_data_or_from_the_header(tmp_path: Path) -> None:
    # The header of this file says [5, 23), its data [2, 25).
    path = write_volume(
        tmp_path / "a.h5", kspace=make_kspace(2, 3, 32, 28, (2, 25)), acquired=(5, 23)
    )
    for offsets_from_data, expected in ((True, (2, 25)), (False, (5, 23))):
        columns = dataset(path, masks=EVERYTHING, offsets_from_data=offsets_from_data)[0].mask
        measured = columns.flatten().nonzero().flatten().tolist()
        assert measured == list(range(*expected))


def test_a_single_measured_number_marks_its_column_as_acquired(tmp_path: Path) -> None:
    for part in (1e-30, 1e-30j, -1e-30, -1e-30j):
        kspace = np.zeros((1, 3, 32, 28), np.complex64)
        kspace[0, 1, 7, 4] = kspace[0, 2, 9, 20] = part
        path = write_volume(tmp_path / "a.h5", kspace=kspace, with_target=False)
        for rotated, expected in ((False, range(4, 21)), (True, range(7, 10))):
            example = dataset(
                path,
                masks=MaskSampler(kind="equispaced", accelerations=(1,), acs=(1,)),
                rotate_probability=float(rotated),
                require_target=False,
            )[0]
            assert example.mask.flatten().nonzero().flatten().tolist() == list(expected)


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("middle", [(10, 14), (3, 14), (10, 21), (3, 21), (0, 0)])
def test_acquired_columns_are_found_wherever_the_middle_line_ends(
    middle: tuple[int, int], rotated: bool
) -> None:
    kspace = np.zeros((1, 3, 25, 25), np.complex64)
    kspace[0, 1, 2, 3:21] = kspace[0, 2, 24, 20] = 1e-7j
    kspace[0, :, 12, slice(*middle)] = 1e-6
    kspace[0, 0, :, :3] = complex(-0.0, -0.0)  # zero, too
    kspace = kspace[0]
    if rotated:
        kspace = np.ascontiguousarray(kspace.swapaxes(-2, -1)).swapaxes(-2, -1)
    assert acquired_columns(kspace) == (3, 21)


def test_header_without_limits_is_an_error_only_where_they_are_needed(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "bare.h5", header="<ismrmrdHeader/>")
    assert len(dataset(path, offsets_from_data=True)) == 4
    with pytest.raises(VolumeError, match=r"bare\.h5.*phase-encode columns"):
        dataset(path, offsets_from_data=False)


@pytest.mark.parametrize("offsets_from_data", [True, False])
def test_validation_mask_is_fixed_for_each_volume(
    four_volumes: list[Path], offsets_from_data: bool
) -> None:
    masks = set()
    for seed in (0, 1):
        source = dataset(
            *four_volumes, masks=RANDOM, seed=seed, offsets_from_data=offsets_from_data
        )
        for epoch in (0, 5):
            for index in range(len(source)):
                example = source[Draw(epoch=epoch, index=index)]
                masks.add((example.name, tuple(example.mask.flatten().tolist())))
    assert len(masks) == 4
    for name, columns in masks:
        expected = RANDOM.draw(20, seeded_by_name(name), acquired=(2, 17))
        assert list(columns) == expected.columns.tolist()
    assert len({columns for _, columns in masks}) > 1


# Volumes


def test_volumes_without_target_are_refused_or_give_none(tmp_path: Path, oblong: Path) -> None:
    paths = [
        write_volume(tmp_path / name, with_target=False, size=(16, 20)) for name in ("a.h5", "b.h5")
    ]
    with pytest.raises(VolumeError, match=r"^2 unusable[^$]*a\.h5: has no target[^$]*b\.h5"):
        dataset(oblong, *paths)
    example = dataset(*paths, require_target=False)[5]
    assert example.target is None
    assert np.isnan(example.data_range)
    assert (example.name, example.slice_index) == ("b.h5", 1)


@pytest.mark.parametrize("offsets_from_data", [True, False])
@pytest.mark.parametrize(
    ("width", "lines", "centre", "acs_lines"),
    [
        (28, range(2, 28, 4), range(11, 17), 6),
        (27, range(1, 27, 4), range(11, 16), 5),
        # a line beside the centre makes it wider: 10 .. 16 is (27 - 7 + 1) // 2 and 7 on
        (27, [10, 16], range(11, 16), 7),
        # one beside the wrong side does not: 6 lines are 11 .. 16
        (27, [10], range(11, 16), 5),
    ],
)
def test_undersampled_file_keeps_its_own_mask_and_its_orientation(
    tmp_path: Path,
    width: int,
    lines: Any,
    centre: range,
    acs_lines: int,
    offsets_from_data: bool,
) -> None:
    columns = np.zeros(width, dtype=bool)
    columns[list(lines)] = columns[list(centre)] = True
    path = write_volume(tmp_path / "a.h5", size=(32, width), mask=columns, with_target=False)
    source = dataset(
        path,
        masks=RANDOM,
        rotate_probability=1,
        redraw_masks=True,
        require_target=False,
        offsets_from_data=offsets_from_data,
    )
    for index in range(4):
        example = source[index]
        assert not example.rotated
        assert example.mask.flatten().tolist() == columns.tolist()
        assert torch.equal(example.masked_kspace, stored(path)[index] * torch.from_numpy(columns))
        assert example.acs_lines == acs_lines


def test_every_slice_of_every_volume_is_an_example(four_volumes: list[Path]) -> None:
    source = dataset(*four_volumes)
    assert len(source) == 28
    places = [(source[i].name, source[i].slice_index) for i in range(28)]
    assert places == [
        (f"{n}.h5", s) for n, count in zip("abcd", (8, 7, 8, 5), strict=True) for s in range(count)
    ]


@pytest.mark.parametrize(
    ("slice_range", "counts"),
    [
        ((None, 7), [7, 7, 7, 5]),
        ((2, None), [6, 5, 6, 3]),
        ((2, 7), [5, 5, 5, 3]),
        ((6, None), [2, 1, 2, 0]),
    ],
)
def test_slice_range_holds_for_each_volume_by_itself(
    four_volumes: list[Path], slice_range: tuple[int | None, int | None], counts: list[int]
) -> None:
    source = dataset(*four_volumes, slice_range=slice_range)
    slices: dict[str, list[int]] = {name: [] for name in "abcd"}
    for i in range(len(source)):
        slices[source[i].name.removesuffix(".h5")].append(source[i].slice_index)
    first = slice_range[0] or 0
    assert list(slices.values()) == [list(range(first, first + count)) for count in counts]


def test_slice_range_that_leaves_nothing_is_refused(four_volumes: list[Path]) -> None:
    with pytest.raises(ValueError, match="none of 4 volumes has any"):
        dataset(*four_volumes, slice_range=(8, None))


def test_size_is_that_of_the_example(oblong: Path, tmp_path: Path) -> None:
    single = write_volume(tmp_path / "single.h5", coils=None, size=(16, 20), target_size=(12, 8))
    bare = write_volume(tmp_path / "bare.h5", size=(14, 20), with_target=False)
    source = dataset(oblong, single, bare, rotate_probability=0.5, require_target=False)
    sizes = set()
    for index in range(len(source)):
        draw = Draw(epoch=2, index=index)
        example = source[draw]
        target = () if example.target is None else example.target.shape[1:]
        assert source.size(draw) == (*example.masked_kspace.shape, *target)
        sizes.add(source.size(draw))
    assert len(sizes) == 6  # three files, upright and transposed


# Draws


def assert_equal(a: Example, b: Example) -> None:
    assert torch.equal(a.masked_kspace, b.masked_kspace)
    assert torch.equal(a.mask, b.mask)
    assert (a.name, a.slice_index, a.rotated) == (b.name, b.slice_index, b.rotated)
    assert (a.acs_lines, a.data_range) == (b.acs_lines, b.data_range)
    assert a.target is not None
    assert b.target is not None
    assert torch.equal(a.target, b.target)


def drawn_by(batches: Iterator[Batch]) -> dict[tuple[str, int], tuple[float, list[bool], Tensor]]:
    return {
        (b.names[0], b.slices[0]): (b.rotated.item(), b.mask.flatten().tolist(), b.masked_kspace)
        for b in batches
    }


@with_workers
def test_draws_are_the_same_for_any_number_of_workers_and_any_order(
    four_volumes: list[Path],
) -> None:
    source = dataset(*four_volumes, masks=RANDOM, rotate_probability=0.5, redraw_masks=True)
    expected = drawn_by(load(source))
    assert len(expected) == 28
    others = [load(source, workers=2), load(source, shuffle=True)]
    np.random.seed(3)
    torch.manual_seed(3)
    for batches in others:
        drawn = drawn_by(batches)
        assert drawn.keys() == expected.keys()
        for place, (label, columns, kspace) in drawn.items():
            assert (label, columns) == expected[place][:2]
            assert torch.equal(kspace, expected[place][2])


def test_draws_differ_between_seeds_epochs_files_and_slices(tmp_path: Path) -> None:
    # Two files with the same content: only the name can tell them apart.
    paths = [
        write_volume(tmp_path / name, slices=2, size=(16, 40), target_size=(12, 12))
        for name in ("a.h5", "b.h5")
    ]
    sources = [dataset(*paths, masks=RANDOM, redraw_masks=True, seed=seed) for seed in (0, 1)]
    masks = {
        tuple(source[Draw(epoch=epoch, index=index)].mask.flatten().tolist())
        for source in sources
        for epoch in (0, 1)
        for index in range(4)
    }
    assert len(masks) == 16

    rotating = [dataset(*paths, rotate_probability=0.5, seed=seed) for seed in (0, 1)]
    labels = {
        tuple(source.rotated(Draw(epoch=epoch, index=index)) for epoch in range(64))
        for source in rotating
        for index in range(4)
    }
    assert len(labels) == 8


def test_label_does_not_depend_on_how_masks_are_drawn(four_volumes: list[Path]) -> None:
    def labels(**options: Any) -> list[bool]:
        source = dataset(*four_volumes, rotate_probability=0.5, **options)
        return [source[i].rotated for i in range(28)]

    assert labels(masks=RANDOM, redraw_masks=True) == labels(masks=QUADRATURE)


def test_both_labels_occur_half_the_time_and_not_in_step_on_two_processes(
    four_volumes: list[Path],
) -> None:
    source = dataset(*four_volumes, rotate_probability=0.5)
    sampler = EpochSampler(source, batch_size=1, seed=0, shuffle=True)
    labels = []
    for sampler.epoch in range(40):
        labels += [source.rotated(draw) for (draw,) in sampler]
    assert np.mean(labels) == pytest.approx(0.5, abs=0.05)
    # Each process takes every other draw: a global batch must not be of one label alone.
    first, second = np.array(labels[0::2]), np.array(labels[1::2])
    assert np.mean(first == second) == pytest.approx(0.5, abs=0.07)
    for process in (first, second):
        assert np.mean(process) == pytest.approx(0.5, abs=0.07)


def test_label_is_known_without_reading(four_volumes: list[Path]) -> None:
    source = dataset(*four_volumes, rotate_probability=0.5)
    draws = [Draw(epoch=3, index=index) for index in range(28)]
    assert [source.rotated(draw) for draw in draws] == [source[draw].rotated for draw in draws]
    for probability in (0.0, 1.0):
        source = dataset(*four_volumes, rotate_probability=probability)
        assert {source.rotated(draw) for draw in draws} == {bool(probability)}


# Faults


def spoil(path: Path, key: str, place: tuple[int, ...], value: complex) -> None:
    with h5py.File(path, "r+") as file:
        file[key][place] = value


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, complex(0, np.nan), complex(0, -np.inf)])
@pytest.mark.parametrize("place", [(0, 0, 0), (1, 5, 9), (1, 16, 14), (2, 31, 27)])
def test_kspace_that_is_not_finite_names_file_and_slice(
    tmp_path: Path, place: tuple[int, int, int], value: complex, rotated: bool
) -> None:
    path = write_volume(tmp_path / "bad.h5")
    spoil(path, "kspace", (2, *place), value)
    source = dataset(path, rotate_probability=float(rotated))
    with pytest.raises(VolumeError, match=rf"{re.escape(str(path))}: k-space of slice 2 "):
        source[2]
    assert source[1].masked_kspace.isfinite().all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_target_that_is_not_finite_names_file_and_slice(tmp_path: Path, value: float) -> None:
    path = write_volume(tmp_path / "bad.h5")
    spoil(path, "reconstruction_rss", (3, 5, 9), value)
    source = dataset(path)
    with pytest.raises(VolumeError, match=rf"{re.escape(str(path))}: target of slice 3 "):
        source[3]
    assert source[2].slice_index == 2


def test_kspace_that_was_not_written_in_full_names_file_and_slice(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "bad.h5")
    with h5py.File(path, "r+") as file:
        file["kspace"][2] = 0
    source = dataset(path)
    with pytest.raises(VolumeError, match=rf"{re.escape(str(path))}: k-space of slice 2 is zero"):
        source[2]
    assert source[1].masked_kspace.any()


@with_workers
def test_fault_in_a_worker_arrives_with_file_and_slice(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "bad.h5")
    spoil(path, "kspace", (2, 0, 0, 9), np.nan)
    with pytest.raises(
        VolumeError, match=rf"{re.escape(str(path))}: k-space of slice 2 "
    ) as caught:
        list(load(dataset(path), workers=1))
    # Lets go of the loader now: the garbage collector would wait 5 s for its worker.
    traceback.clear_frames(caught.tb)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


def shorten(path: Path) -> None:
    write_volume(path, slices=2)


def resize(path: Path) -> None:
    write_volume(path, size=(30, 26))


def transpose(path: Path) -> None:
    write_volume(path, size=(28, 32))  # as many bytes


def empty(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["nothing"] = 0


@pytest.mark.parametrize("change", [truncate, Path.unlink, shorten, resize, transpose, empty])
def test_file_changed_after_indexing_is_named(tmp_path: Path, change: Any) -> None:
    path = write_volume(tmp_path / "changed.h5", size=(32, 28))
    source = dataset(path)
    change(path)
    with pytest.raises(VolumeError, match=re.escape(str(path))):
        source[3]


def test_file_truncated_while_it_is_open_is_named(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "changed.h5")
    source = dataset(path)
    assert source[0].masked_kspace.any()
    truncate(path)
    with pytest.raises(VolumeError, match=re.escape(str(path))):
        source[3]  # HDF5 reads zeros past the end of an open file


@pytest.mark.parametrize("offsets_from_data", [True, False])
@pytest.mark.parametrize("rotated", [False, True])
def test_slice_of_zeros_is_a_valid_example(
    tmp_path: Path, rotated: bool, offsets_from_data: bool
) -> None:
    kspace = make_kspace(3, 3, 32, 28, (2, 25))
    kspace[0] = 0
    path = write_volume(tmp_path / "a.h5", kspace=kspace)
    example = dataset(path, rotate_probability=float(rotated), offsets_from_data=offsets_from_data)[
        0
    ]
    assert example.target is not None
    assert not example.masked_kspace.any()
    assert not example.target.any()
    first = (example.mask.shape[-1] - 4 + 1) // 2
    assert example.mask[..., first : first + 4].all()
    assert example.data_range > 0


# Open files


def test_handles_close_the_least_recently_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handle_cache, "CAPACITY", 2)
    a, b, c = (str(write_volume(tmp_path / f"{name}.h5")) for name in "abc")
    cache = HandleCache()
    first, second = cache.open(a), cache.open(b)
    assert cache.open(a) is first  # now b is the oldest
    third = cache.open(c)
    assert (bool(first), bool(second), bool(third)) == (True, False, True)
    assert cache.open(a) is first
    assert cache.open(b)  # opened anew
    assert not third
    cache.close()
    assert not first


def test_more_volumes_than_handles_are_read_right(
    four_volumes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handle_cache, "CAPACITY", 1)
    source = dataset(*four_volumes, masks=EVERYTHING)
    for index, path in ((0, 0), (8, 1), (1, 0), (27, 3)):
        example = source[index]
        assert torch.equal(example.masked_kspace, stored(four_volumes[path])[example.slice_index])


def test_closed_dataset_opens_its_files_again(oblong: Path) -> None:
    source = dataset(oblong)
    before = source[1]
    source.close()
    assert_equal(source[1], before)


def test_dataset_with_open_files_pickles_without_them(oblong: Path) -> None:
    source = dataset(oblong, masks=RANDOM, rotate_probability=0.5, redraw_masks=True)
    before = [source[i] for i in range(4)]
    copy = pickle.loads(pickle.dumps(source))
    source.close()
    for index in range(4):
        assert_equal(copy[index], before[index])


def test_forked_child_opens_files_of_its_own(oblong: Path) -> None:
    cache = HandleCache()
    inherited = cache.open(str(oblong))

    def child() -> None:
        cache.close()  # closes nothing of its parent's
        own = cache.open(str(oblong))
        same = own["kspace"][1].tobytes() == stored(oblong)[1].numpy().tobytes()
        right = same and own is not inherited and bool(inherited) and cache.open(str(oblong)) is own
        os._exit(0 if right else 3)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(timeout=30)
    assert process.exitcode == 0
    assert cache.open(str(oblong)) is inherited
    assert inherited["kspace"].shape == (4, 3, 32, 28)


# Batches


def test_collate_stacks_examples_with_the_centre_lines_of_each(oblong: Path) -> None:
    masks = MaskSampler(kind="quadrature", accelerations=(4,), acs=(4, 8))
    source = dataset(oblong, masks=masks, redraw_masks=True)
    draws = [Draw(epoch=epoch, index=index) for epoch in range(4) for index in range(4)]
    examples = [source[draw] for draw in draws]
    batch = collate(examples)
    assert batch.target is not None
    assert batch.masked_kspace.shape == (16, 3, 32, 28)
    assert batch.mask.shape == (16, 1, 1, 28)
    assert batch.target.shape == (16, 1, 24, 20)
    assert (batch.masked_kspace.dtype, batch.mask.dtype) == (torch.complex64, torch.bool)
    assert (batch.acs_lines.dtype, batch.data_range.dtype) == (torch.int64, torch.float32)
    assert (batch.target.dtype, batch.rotated.dtype) == (torch.float32, torch.float32)
    assert set(batch.acs_lines.tolist()) == {4, 8}
    for i, example in enumerate(examples):
        assert example.target is not None
        assert torch.equal(batch.masked_kspace[i], example.masked_kspace)
        assert torch.equal(batch.mask[i], example.mask)
        assert torch.equal(batch.target[i], example.target)
        assert batch.acs_lines[i] == example.acs_lines
        assert batch.data_range[i].item() == pytest.approx(example.data_range)
    assert batch.names == ("file1.h5",) * 16
    assert batch.slices == (0, 1, 2, 3) * 4


def test_batch_of_different_masks_has_the_kspace_of_each(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "square.h5", size=(28, 28), acquired=(3, 24))
    source = dataset(path, masks=RANDOM, rotate_probability=0.5, redraw_masks=True)
    examples = [source[Draw(epoch=epoch, index=1)] for epoch in range(8)]
    assert {example.rotated for example in examples} == {False, True}
    assert len({example.measured.shape for example in examples}) > 1
    batch = collate(examples)
    kspace = stored(path)[1]
    full = torch.stack([kspace.mT if rotated else kspace for rotated in batch.rotated])
    assert torch.equal(batch.masked_kspace, full * batch.mask)
    assert batch.masked_kspace.is_contiguous()
    assert batch.masked_kspace is batch.masked_kspace  # made once


@with_workers
@pytest.mark.parametrize("workers", [0, 1])
def test_only_measured_columns_go_from_process_to_process(oblong: Path, workers: int) -> None:
    source = dataset(oblong, rotate_probability=0.5)
    labels = set()
    for batch in load(source, workers=workers):
        columns = int(batch.mask.sum())
        assert columns < 0.5 * batch.mask.numel()
        # The storage, which is what is sent, and not a view of more.
        assert (
            batch.measured.untyped_storage().nbytes() == 3 * batch.measured.shape[1] * columns * 8
        )
        assert batch.measured.is_shared() is (workers > 0)
        assert "masked_kspace" not in vars(batch)
        labels.add(batch.rotated.item())
    assert labels == {0, 1}


def test_joined_batches_are_the_batch_of_all_their_examples(four_volumes: list[Path]) -> None:
    source = dataset(*four_volumes, masks=RANDOM, rotate_probability=0.0)
    examples = [source[index] for index in (0, 8, 15)]
    (found,) = joined([collate(examples[:2]), collate(examples[2:])])
    expected = collate(examples)
    for field in fields(expected):
        value, wanted = getattr(found, field.name), getattr(expected, field.name)
        assert torch.equal(value, wanted) if isinstance(value, Tensor) else value == wanted


def test_batches_of_different_sizes_are_not_joined(oblong: Path) -> None:
    source = dataset(oblong)
    batches = [
        collate([source[Draw(epoch=0, index=0, rotated=turned)]]) for turned in (False, True)
    ]
    assert joined(batches) == batches


def test_batch_arrives_as_it_was_sent(oblong: Path) -> None:
    source = dataset(oblong, rotate_probability=0.5)
    for batch in (collate([source[1]]), collate([source[1], source[1]])):
        expected = batch.masked_kspace  # made here, and not sent
        message = pickle.dumps(batch)
        assert len(message) < expected.nbytes
        other = pickle.loads(message)
        assert "masked_kspace" not in vars(other)
        assert_same_batch(other, batch)


def test_loader_pins_every_tensor_of_a_batch(oblong: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    source = dataset(oblong, rotate_probability=1)
    batch = collate([source[1]])
    monkeypatch.setattr(Tensor, "pin_memory", pin)  # which needs a GPU
    other = pin_memory(batch)  # what the loader calls
    tensors = [value for value in vars(other).values() if isinstance(value, Tensor)]
    assert len(tensors) == 7
    assert {id(tensor) for tensor in tensors} == {id(tensor) for tensor in pinned}
    assert_same_batch(other, batch)


def assert_same_batch(a: Batch, b: Batch) -> None:
    assert torch.equal(a.masked_kspace, b.masked_kspace)
    for field in fields(Batch):
        first, second = getattr(a, field.name), getattr(b, field.name)
        if isinstance(second, Tensor):
            assert torch.equal(first, second)
            assert (first.dtype, first.stride()) == (second.dtype, second.stride())
        else:
            assert first == second


def test_collate_turns_labels_into_0_and_1_and_describe_tells_them(oblong: Path) -> None:
    example = dataset(oblong)[0]
    batch = collate([example, replace(example, rotated=True, slice_index=3)])
    assert batch.rotated.tolist() == [0, 1]
    assert batch.describe() == "file1.h5 slice 0, file1.h5 slice 3 (transposed)"


def test_collate_without_targets_has_none(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "a.h5", with_target=False)
    source = dataset(path, require_target=False)
    batch = collate([source[0], source[1]])
    assert batch.target is None
    assert batch.data_range.isnan().all()
    assert batch.to(torch.device("cpu")).target is None


def test_collate_refuses_different_sizes_and_names_the_files(oblong: Path, tmp_path: Path) -> None:
    first = dataset(oblong)[0]
    other = dataset(write_volume(tmp_path / "other.h5", size=(32, 26)))[0]
    with pytest.raises(ValueError, match=r"file1\.h5.*other\.h5"):
        collate([first, other])
    with pytest.raises(ValueError, match=r"file1\.h5.*file1\.h5"):
        collate([first, replace(first, target=None)])
    turned = dataset(oblong, rotate_probability=1)[0]
    with pytest.raises(ValueError, match=r"file1\.h5.*file1\.h5"):
        collate([first, turned])


def test_batch_moves_to_a_device_and_keeps_types_and_the_rest(oblong: Path) -> None:
    source = dataset(oblong)
    batch = collate([source[0], source[1]])
    # "meta" stands in for an accelerator: what was forgotten stays on the CPU.
    moved = batch.to(torch.device("meta"))
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    assert len(tensors) == 7
    for name, tensor in {**tensors, "masked_kspace": batch.masked_kspace}.items():
        other = getattr(moved, name)
        assert (other.device.type, other.dtype, other.shape) == (
            "meta",
            tensor.dtype,
            tensor.shape,
        )
        assert torch.equal(getattr(batch.to(torch.device("cpu")), name), tensor)
    assert (moved.names, moved.slices) == (batch.names, batch.slices)
