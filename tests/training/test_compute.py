"""Running out of a GPU's memory."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from banding_removal.config.settings import Settings
from banding_removal.errors import ConfigError
from banding_removal.model.predictor import Predictor
from banding_removal.training import loop
from banding_removal.training.compute import out_of_memory_advice
from banding_removal.training.loop import train


@pytest.mark.parametrize(
    ("recomputed", "advice"),
    [(0, "recompute=0 can be raised up to 4"), (3, "up to 4"), (4, "recompute=4 already covers")],
)
def test_running_out_of_memory_ends_with_what_saves_memory(recomputed: int, advice: str) -> None:
    predictor = Predictor(cascades=3, chans=4, pools=2, sens_chans=4)
    predictor.recomputed = recomputed
    with pytest.raises(ConfigError, match=advice) as caught, out_of_memory_advice(predictor):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert "2.00 GiB" in str(caught.value)


def test_a_run_that_is_out_of_memory_says_so_in_its_log(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: Any) -> dict[str, float]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop, "train_step", step)
    with pytest.raises(ConfigError, match="recompute=0 can be raised up to 2"):
        train(replace(settings, epochs=1))
    assert "recompute=0" in (settings.logs / "toy" / "log.txt").read_text()
