"""What runs leave behind, for tests; and a predictor that learns nothing."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from banding_removal.data.operators import rss, to_image
from banding_removal.model.predictor import Predictor
from banding_removal.runs.checkpoint import find_checkpoint, load_checkpoint

SCRIPTS = Path(__file__).parents[2] / "scripts"


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_checkpoint(find_checkpoint(folder)).predictor


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = weights_of(a), weights_of(b)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def metrics_count(folder: Path) -> int:
    return len(read_metrics(folder)) if (folder / "metrics.jsonl").exists() else 0


class ZeroFilled(Predictor):
    """The zero-filled RSS, as a predictor."""

    def forward(self, masked_kspace: Tensor, *_: Any, **__: Any) -> Tensor:
        return rss(to_image(masked_kspace))
