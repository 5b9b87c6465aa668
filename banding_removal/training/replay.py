"""Earlier reconstructions, for the adversary to see again."""

from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor


class PairStore:
    """The newest pairs of reconstructions: a slice from either orientation, both upright.

    An adversary that only ever sees the newest reconstructions forgets the banding that the
    predictor would fall back into. Draws use torch's global generator.

    Args:
        capacity: number of pairs, each float32 (2, 1, h, w) on the CPU: phase encoding along x,
            then along y.
    """

    def __init__(self, capacity: int) -> None:
        self.pairs: deque[Tensor] = deque(maxlen=capacity)

    def add(self, pairs: Iterable[Tensor]) -> None:
        """Store pairs (2, 1, h, w); the oldest give way."""
        self.pairs.extend(pair.detach().cpu().clone() for pair in pairs)

    def draw(self, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """At most `count` different pairs of images, n of them, of the size of those in `like`.

        Returns:
            Images (2n, 1, h, w), on the device of `like`, and their labels `rotated` (2n,).
        """
        same = [pair for pair in self.pairs if pair.shape[-2:] == like.shape[-2:]]
        chosen = [same[i] for i in torch.randperm(len(same))[:count].tolist()]
        images = torch.cat([like.new_empty((0, 1, *like.shape[-2:])).cpu(), *chosen])
        return images.to(like.device), torch.tensor([0.0, 1.0] * len(chosen), device=like.device)
