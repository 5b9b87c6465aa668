"""The order in which the slices of an epoch come, and their distribution over processes."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from torch.utils.data import Sampler

from banding_removal.data.dataset import Draw, SliceDataset

T = TypeVar("T")


class EpochSampler(Sampler[list[Draw]]):
    """Batches of draws for one epoch; set `epoch` before iterating.

    The order depends on (seed, epoch) alone. Each draw carries its epoch, because workers live for
    the whole run. Batches hold slices of one size, collected in order of appearance; incomplete
    batches come last.

    With a `fraction` below 1 an epoch is that part of the data, and the next epoch continues where
    it ended: five epochs of a fifth see every slice once.

    Process r of n gets batches r, r + n, ... All processes need the same number of whole steps, so
    an epoch is padded with its own first batches to a multiple of n x `accumulate`. n processes
    then see in a step what one process with accumulate=n sees.

    With `paired`, every batch comes twice in a row, upright and then transposed. "Batch" above then
    means such a pair, which stays in one process and one step. With `split_pairs`, processes
    2r and 2r + 1 of 2n take the pairs that process r of n would have: the even one upright, the odd
    one transposed.

    Args:
        dataset: slices and their sizes.
        batch_size: examples in a batch.
        seed: of the orders.
        shuffle: False: the order of the data set.
        fraction: part of the data in an epoch.
        rank: which process this is.
        ranks: number of processes.
        accumulate: batches of each process in one step.
        paired: every slice in both orientations.
        split_pairs: an orientation for each process; `ranks` is even.

    Attributes:
        epoch: the epoch that iterating goes through.
        start: how many of its batches (of all processes) to skip, when a run is resumed.
    """

    def __init__(
        self,
        dataset: SliceDataset,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        fraction: float = 1.0,
        rank: int = 0,
        ranks: int = 1,
        accumulate: int = 1,
        paired: bool = False,
        split_pairs: bool = False,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.count = max(1, round(fraction * len(dataset)))
        self.orientations = (rank % 2 == 1,) if split_pairs else (False, True)
        self.rank = rank // 2 if split_pairs else rank
        self.ranks = ranks // 2 if split_pairs else ranks
        self.accumulate = accumulate
        self.paired = paired
        self.epoch = 0
        self.start = 0

    @property
    def batches_per_group(self) -> int:
        """Batches that this process takes one after the other: those of a pair, or one."""
        return len(self.orientations) if self.paired else 1

    @property
    def steps(self) -> int:
        """Steps left in the epoch."""
        batches = self.count if self.batch_size == 1 else sum(1 for _ in self._batches())
        return -(-max(0, batches - self.start) // (self.ranks * self.accumulate))

    def __len__(self) -> int:
        return self.steps * self.accumulate * self.batches_per_group

    def __iter__(self) -> Iterator[list[Draw]]:
        batches = list(self._batches())
        left = batches[self.start :]
        missing = self.steps * self.accumulate * self.ranks - len(left)
        left += itertools.islice(itertools.cycle(batches), missing)
        for batch in left[self.rank :: self.ranks]:
            if not self.paired:
                yield batch
                continue
            for rotated in self.orientations:
                yield [replace(draw, rotated=rotated) for draw in batch]

    def _batches(self) -> Iterator[list[Draw]]:
        waiting: dict[tuple[int, ...], list[Draw]] = defaultdict(list)
        for index in self._indices():
            draw = Draw(epoch=self.epoch, index=index, rotated=False if self.paired else None)
            size = self.dataset.size(draw) if self.batch_size > 1 else ()
            waiting[size].append(draw)
            if len(waiting[size]) == self.batch_size:
                yield waiting.pop(size)
        yield from waiting.values()

    def _indices(self) -> list[int]:
        """The epoch's part of an endless sequence of passes over the data, each shuffled anew."""
        total, start = len(self.dataset), self.epoch * self.count
        found: list[int] = []
        while len(found) < self.count:
            number, offset = divmod(start + len(found), total)
            order = np.arange(total)
            if self.shuffle:
                np.random.default_rng([self.seed, number]).shuffle(order)
            found += order[offset : offset + self.count - len(found)].tolist()
        return found


def shares_by_volume(dataset: SliceDataset, ranks: int) -> list[list[int]]:
    """Indices of slices for each of `ranks` processes: whole volumes, about equally many slices."""
    by_volume: dict[int, list[int]] = defaultdict(list)
    for index, (volume, _) in enumerate(dataset.places):
        by_volume[volume].append(index)
    shares = balanced_shares([*by_volume.values()], len, ranks)
    return [sorted(itertools.chain.from_iterable(share)) for share in shares]


def balanced_shares(items: Sequence[T], size: Callable[[T], int], ranks: int) -> list[list[T]]:
    """The items for each of `ranks` processes, about equally much in total.

    Items are assigned from the largest to the smallest, each to the process with the least so far.
    """
    shares: list[list[T]] = [[] for _ in range(ranks)]
    for item in sorted(items, key=size, reverse=True):
        min(shares, key=lambda share: sum(map(size, share))).append(item)
    return shares
