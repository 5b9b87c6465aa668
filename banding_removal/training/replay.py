"""Earlier reconstructions, for the adversary to see again."""

from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor


class PairStore:
    """The newest pairs of reconstructions: a slice from both orientations, upright.

    An adversary that sees the newest reconstructions alone forgets what banding the predictor
    would fall back into. What is drawn depends on torch's global generator.

    Args:
        capacity: number of pairs, float32 (2, 1, h, w) on the CPU: upright, then transposed.
    """

    def __init__(self, capacity: int) -> None:
        self.pairs: deque[Tensor] = deque(maxlen=capacity)

    def add(self, pairs: Iterable[Tensor]) -> None:
        """Store pairs (2, 1, h, w); the oldest ones give way."""
        self.pairs.extend(pair.detach().cpu().clone() for pair in pairs)

    def draw(self, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """At most `count` different pairs of images as large as those `like`.

        Returns:
            Images (2n, 1, h, w), on the device of `like`, and their labels `rotated` (2n,).
        """
        same = [pair for pair in self.pairs if pair.shape[-2:] == like.shape[-2:]]
        chosen = [same[i] for i in torch.randperm(len(same))[:count].tolist()]
        images = torch.cat([like.new_empty((0, 1, *like.shape[-2:])).cpu(), *chosen])
        return images.to(like.device), torch.tensor([0.0, 1.0] * len(chosen), device=like.device)
