import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from banding_removal.pictures.image_code import STEPS, decode, encode
from banding_removal.pictures.kept_slices import FOLDER, keep_slices, read_slices
from tests.support.pages import UNIT, banded_slice, write_run


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / FOLDER).iterdir())


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 5), (33, 20)])
def test_an_image_comes_back_to_half_a_step(size: tuple[int, int]) -> None:
    image = torch.rand(size, generator=torch.Generator().manual_seed(0))
    counts = decode(encode(image, 1 / STEPS), size)
    assert counts.dtype == np.uint16 and counts.shape == size
    assert np.abs(counts / STEPS - image.double().numpy()).max() <= 0.5001 / STEPS


def test_extreme_values_are_clipped_and_neighbours_are_not_harmed() -> None:
    image = torch.tensor([[0.0, 100.0, -1.0], [100.0, 0.0, 7.5], [1.0, 100.0, 0.25]])
    counts = decode(encode(image, 1 / STEPS), (3, 3))
    expected = np.clip(image.numpy() * STEPS, 0, 65535)
    assert (counts == expected).all()


def test_slices_are_read_as_they_were_kept(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    kept = read_slices(folder)
    assert [info.volume for info in kept.slices] == ["file0.h5", "file1.h5", "file2.h5"]
    assert [*kept.epochs] == [1, 2, 3]
    item, info = banded_slice(2, epoch=3), kept.slices[2]
    found = kept.epochs[3]
    for stream, image in (
        (kept.targets["target", 2], item.pair.target),
        (found.images["x", 2], item.pair.along_x),
        (found.images["y", 2], item.pair.along_y),
    ):
        assert image is not None
        error = np.abs(decode(stream, info.shape) * info.step - image.numpy())
        assert error.max() <= 0.51 * UNIT / STEPS
    assert ("x", 1) in found.images and ("y", 1) not in found.images
    assert found.metrics[2]["ssim"] == pytest.approx(0.83)
    assert found.metrics[2]["nmse"] is None and found.metrics[2]["banding"] is None
    with np.load(folder / FOLDER / "epoch003.npz", allow_pickle=False) as content:
        assert all(content[name].dtype.kind in "uU" for name in content.files)


def test_a_long_run_stays_below_its_budget_and_keeps_both_ends(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", epochs=[1], slices=6)
    budget = 6 * size_of(one)
    folder = tmp_path / "run"
    for epoch in range(1, 121):
        keep_slices(folder, epoch, [banded_slice(i, epoch) for i in range(6)], budget)
        assert size_of(folder) <= budget
    kept = read_slices(folder)
    epochs = [*kept.epochs]
    assert epochs[0] == 1 and epochs[-2:] == [119, 120] and len(epochs) >= 20
    gaps = np.diff(epochs)
    assert gaps[0] > gaps[-3]  # old epochs lie farther apart
    assert gaps.max() < 60
    slices = {number: {i for _, i in found.images} for number, found in kept.epochs.items()}
    for number in epochs:
        assert slices[number] == ({*range(6)} if number in (1, 120) else {3})


def test_a_run_that_nearly_fits_keeps_two_slices_of_old_epochs(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", epochs=[1], slices=6)
    for epoch in range(1, 9):
        items = [banded_slice(i, epoch) for i in range(6)]
        keep_slices(tmp_path, epoch, items, budget=4 * size_of(one))
    kept = read_slices(tmp_path)
    numbers = [len({i for _, i in found.images}) for found in kept.epochs.values()]
    assert numbers[0] == numbers[-1] == 6 and {*numbers[1:-1]} <= {2, 6} and 2 in numbers


def test_a_damaged_file_is_removed_when_epochs_are_thinned_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_run(tmp_path / "run", epochs=[1, 2, 3, 4, 5])
    damaged = folder / FOLDER / "epoch002.npz"
    damaged.write_bytes(damaged.read_bytes()[:100])
    keep_slices(folder, 6, [banded_slice(i, 6) for i in range(3)], budget=size_of(folder))
    assert f"{damaged} is damaged and removed" in caplog.text
    assert [*read_slices(folder).epochs] == [1, 3, 4, 5, 6]


def test_as_many_slices_are_kept_as_fit(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", epochs=[1], slices=1)
    keep_slices(tmp_path, 1, [banded_slice(i, 1) for i in range(9)], budget=6 * size_of(one))
    assert 1 <= len(read_slices(tmp_path).slices) < 9


def test_epochs_that_a_rollback_has_undone_are_removed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", epochs=[1, 2, 3, 4])
    keep_slices(folder, 3, [banded_slice(i, 30) for i in range(3)])
    kept = read_slices(folder)
    assert [*kept.epochs] == [1, 2, 3]
    assert kept.epochs[3].metrics[0]["ssim"] == pytest.approx(1.1)  # of the later one


def test_epochs_of_other_slices_are_removed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    keep_slices(folder, 4, [banded_slice(i, 4) for i in range(2)])
    kept = read_slices(folder)
    assert len(kept.slices) == 2 and [*kept.epochs] == [4]


def test_a_damaged_file_is_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_run(tmp_path / "run")
    damaged = folder / FOLDER / "epoch002.npz"
    damaged.write_bytes(damaged.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        kept = read_slices(folder)
    assert [*kept.epochs] == [1, 3]
    assert str(damaged) in caplog.text
    (folder / FOLDER / "target.npz").write_bytes(b"")
    assert read_slices(folder).slices == []
    keep_slices(folder, 4, [banded_slice(i, 4) for i in range(3)])
    assert [*read_slices(folder).epochs] == [4]


def test_a_volume_without_signal_is_kept(tmp_path: Path) -> None:
    item = banded_slice(0, 1)
    empty = torch.zeros_like(item.pair.target)
    pair = replace(item.pair, target=empty, along_x=empty, along_y=empty, data_range=0.0)
    keep_slices(tmp_path, 1, [replace(item, pair=pair)])
    kept = read_slices(tmp_path)
    assert not decode(kept.targets["target", 0], kept.slices[0].shape).any()
