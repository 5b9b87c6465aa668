"""The order of an epoch."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from data.dataset import Draw, SliceDataset


class EpochSampler(Sampler[list[Draw]]):
    """Batches of draws for one epoch after another; set `epoch` before iterating.

    The order depends on (seed, epoch) alone. The epoch travels inside each draw, so that workers
    that live for the whole run need not be told of it. Volumes differ in size; batches larger than
    one gather slices of equal size in order of appearance, and what is left over at the end comes
    as smaller batches.

    With a `fraction` below 1 an epoch is that part of the data, and the next epoch takes up where
    it ended: five epochs of a fifth see every slice once.
    """

    def __init__(
        self,
        dataset: SliceDataset,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        fraction: float = 1.0,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.count = max(1, round(fraction * len(dataset)))
        self.epoch = 0

    def __len__(self) -> int:
        if self.batch_size == 1:
            return self.count
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[list[Draw]]:
        waiting: dict[tuple[int, ...], list[Draw]] = defaultdict(list)
        for index in self._indices():
            draw = Draw(epoch=self.epoch, index=index)
            size = self.dataset.size(draw) if self.batch_size > 1 else ()
            waiting[size].append(draw)
            if len(waiting[size]) == self.batch_size:
                yield waiting.pop(size)
        yield from waiting.values()

    def _indices(self) -> list[int]:
        """The epoch's part of an endless row of passes over the data, each in a new order."""
        total, start = len(self.dataset), self.epoch * self.count
        found: list[int] = []
        while len(found) < self.count:
            number, offset = divmod(start + len(found), total)
            order = np.arange(total)
            if self.shuffle:
                np.random.default_rng([self.seed, number]).shuffle(order)
            found += order[offset : offset + self.count - len(found)].tolist()
        return found
