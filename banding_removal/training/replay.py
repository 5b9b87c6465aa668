"""Earlier reconstructions, for the adversary to see again."""

from collections import deque
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class PairStore:
    """The newest pairs of reconstructions: a slice in both orientations, both images upright.

    An adversary that only ever sees the newest reconstructions forgets what earlier banding looked
    like, and the predictor can return to it. Where two processes share a pair, each stores its own
    half. Draws use torch's global generator.

    Args:
        capacity: number of pairs, each float32 (2, 1, h, w) on its device: phase encoding along x,
            then along y.
        orientations: the labels `rotated` of what is stored of a pair.
    """

    def __init__(self, capacity: int, orientations: Sequence[int] = (0, 1)) -> None:
        self.pairs: deque[Tensor] = deque(maxlen=capacity)
        self.orientations = orientations

    def add(self, pairs: Iterable[Tensor]) -> None:
        """Store pairs (2, 1, h, w), or the orientations kept here; the oldest pairs are dropped."""
        for pair in pairs:
            kept = pair if len(pair) == len(self.orientations) else pair[list(self.orientations)]
            self.pairs.append(kept.detach().clone())

    def draw(self, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """At most `count` different pairs of images, n of them, of the size of those in `like`.

        Returns:
            Images (2n, 1, h, w), or (n, 1, h, w) of halves, and their labels `rotated`.
        """
        same = [pair for pair in self.pairs if pair.shape[-2:] == like.shape[-2:]]
        chosen = [same[i] for i in torch.randperm(len(same))[:count].tolist()]
        images = torch.cat([like.new_empty((0, 1, *like.shape[-2:])), *chosen])
        # Filled there: a copy of numbers from here would wait for a GPU.
        labels = like.new_empty((len(chosen), len(self.orientations)), dtype=torch.float32)
        for column, orientation in zip(labels.mT, self.orientations, strict=True):
            column.fill_(orientation)
        return images, labels.flatten()
