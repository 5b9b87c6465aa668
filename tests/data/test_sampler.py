import multiprocessing
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from banding_removal.data.batch import Example, collate
from banding_removal.data.dataset import Draw, SliceDataset
from banding_removal.data.masks import MaskSampler
from banding_removal.data.sampler import EpochSampler
from banding_removal.data.volume import read_volume
from banding_removal.training.loading import make_loader
from tests.support.fastmri_files import write_volume

MASKS = MaskSampler(kind="quadrature", accelerations=(4,), acs=(4,))
VOLUMES = [
    ("a.h5", 5, (32, 28)),
    ("b.h5", 4, (24, 20)),
    ("c.h5", 6, (32, 28)),
    ("d.h5", 3, (28, 32)),  # of the size of a transposed a.h5
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sampler")
    for seed, (name, slices, size) in enumerate(VOLUMES):
        write_volume(folder / name, slices=slices, size=size, target_size=(16, 16), seed=seed)
    return folder


def make_dataset(folder: Path, *, seed: int = 0, rotate: float = 0.5) -> SliceDataset:
    volumes = [read_volume(folder / name) for name, _, _ in VOLUMES]
    return SliceDataset(volumes, MASKS, seed=seed, rotate_probability=rotate)


def epoch_of(sampler: EpochSampler, epoch: int) -> list[list[Draw]]:
    sampler.epoch = epoch
    return list(sampler)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 100])
def test_every_draw_comes_once_in_every_epoch(folder: Path, batch_size: int, shuffle: bool) -> None:
    sampler = EpochSampler(make_dataset(folder), batch_size=batch_size, seed=0, shuffle=shuffle)
    for epoch in range(4):
        draws = [draw for batch in epoch_of(sampler, epoch) for draw in batch]
        assert len(draws) == 18
        assert set(draws) == {Draw(epoch=epoch, index=i) for i in range(18)}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_pairs_are_whole_and_divided_among_processes_as_batches_are(
    folder: Path, batch_size: int
) -> None:
    dataset = make_dataset(folder)
    divided: list[list[Draw]] = []
    for rank in range(2):
        sampler = EpochSampler(
            dataset, batch_size=batch_size, seed=0, shuffle=True, rank=rank, ranks=2, paired=True
        )
        sampler.start = 2
        batches = epoch_of(sampler, 1)
        assert len(batches) == len(sampler) == 2 * sampler.steps
        for upright, turned in zip(batches[::2], batches[1::2], strict=True):
            assert not any(draw.rotated for draw in upright)
            assert turned == [replace(draw, rotated=True) for draw in upright]
            assert len({dataset.size(draw) for draw in turned}) == 1
        divided += batches[::2]
    alone = EpochSampler(dataset, batch_size=batch_size, seed=0, shuffle=True, paired=True)
    expected = [str(batch) for batch in epoch_of(alone, 1)[4::2]]
    assert set(expected) <= {str(batch) for batch in divided}


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 100])
def test_length_is_the_number_of_batches(folder: Path, batch_size: int, shuffle: bool) -> None:
    sampler = EpochSampler(make_dataset(folder), batch_size=batch_size, seed=0, shuffle=shuffle)
    for epoch in range(4):
        batches = epoch_of(sampler, epoch)
        assert len(sampler) == len(batches)
        assert list(sampler) == batches  # asking for the length spends nothing


def test_two_processes_that_split_pairs_have_those_of_one(folder: Path) -> None:
    dataset = make_dataset(folder)

    def batches(rank: int, ranks: int, *, split: bool) -> list[list[Draw]]:
        sampler = EpochSampler(
            dataset,
            batch_size=2,
            seed=0,
            shuffle=True,
            rank=rank,
            ranks=ranks,
            accumulate=2,
            paired=True,
            split_pairs=split,
        )
        found = epoch_of(sampler, 1)
        assert len(found) == len(sampler)
        return found

    for process in range(2):
        pairs = batches(process, 2, split=False)
        assert batches(2 * process, 4, split=True) == pairs[::2]
        assert batches(2 * process + 1, 4, split=True) == pairs[1::2]


@pytest.mark.parametrize("batch_size", [2, 3, 5])
def test_batches_have_one_size_and_only_the_last_of_a_size_is_smaller(
    folder: Path, batch_size: int
) -> None:
    dataset = make_dataset(folder)
    sampler = EpochSampler(dataset, batch_size=batch_size, seed=0, shuffle=True)
    incomplete, seen = 0, set()
    for epoch in range(4):
        batches = epoch_of(sampler, epoch)
        sizes = []
        for batch in batches:
            assert 1 <= len(batch) <= batch_size
            (size,) = {dataset.size(draw) for draw in batch}
            sizes.append(size)
            assert len(collate([dataset[draw] for draw in batch]).names) == len(batch)
        short = Counter(s for s, b in zip(sizes, batches, strict=True) if len(b) < batch_size)
        assert all(count == 1 for count in short.values())
        incomplete += len(short)
        seen.update(sizes)
    assert incomplete
    assert len(seen) == 4  # two sizes, upright and transposed


def test_order_is_that_of_the_files_without_shuffling(folder: Path) -> None:
    sampler = EpochSampler(make_dataset(folder), batch_size=1, seed=0, shuffle=False)
    assert epoch_of(sampler, 7) == [[Draw(epoch=7, index=i)] for i in range(18)]


def test_order_depends_on_seed_and_epoch_alone(folder: Path) -> None:
    def order(seed: int, epoch: int, dataset: SliceDataset) -> tuple[int, ...]:
        sampler = EpochSampler(dataset, batch_size=1, seed=seed, shuffle=True)
        return tuple(draw.index for (draw,) in epoch_of(sampler, epoch))

    first = order(0, 3, make_dataset(folder))
    assert first != tuple(range(18))
    np.random.seed(5)
    torch.manual_seed(5)
    assert order(0, 3, make_dataset(folder, seed=9, rotate=0)) == first
    orders = {order(seed, epoch, make_dataset(folder)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9

    # An epoch's order does not depend on the epochs before it: a resume sees the same.
    sampler = EpochSampler(make_dataset(folder), batch_size=1, seed=0, shuffle=True)
    for epoch in range(4):
        batches = epoch_of(sampler, epoch)
    assert tuple(draw.index for (draw,) in batches) == first


def test_loader_collates_what_the_sampler_gathers(folder: Path) -> None:
    dataset = make_dataset(folder)
    sampler = EpochSampler(dataset, batch_size=3, seed=0, shuffle=True)
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
    )
    drawn = Counter((name, s) for b in loader for name, s in zip(b.names, b.slices, strict=True))
    assert drawn == Counter((name, s) for name, slices, _ in VOLUMES for s in range(slices))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # fewer cores than workers
def test_loader_is_two_batches_a_worker_ahead_and_no_more(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = multiprocessing.get_context("fork").Value("i", 0)
    read = SliceDataset.__getitem__

    def counted(self: SliceDataset, key: Draw | int) -> Example:
        with reads.get_lock():
            reads.value += 1
        return read(self, key)

    monkeypatch.setattr(SliceDataset, "__getitem__", counted)
    draws = [[Draw(epoch=epoch, index=0)] for epoch in range(40)]
    batches = iter(make_loader(make_dataset(folder), draws, 2, torch.device("cpu")))
    for taken in (1, 2):
        next(batches)
        deadline = time.monotonic() + 30
        while reads.value < taken + 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        assert reads.value == taken + 4
