"""Running out of a GPU's memory; memory of inference."""

import subprocess
import sys
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


PEAK_OF_INFERENCE = """
import resource, sys, torch
from banding_removal.model.predictor import Predictor
predictor = Predictor(cascades=int(sys.argv[1]), chans=16, pools=2, sens_chans=2).eval()
kspace = torch.randn(1, 2, 320, 320, dtype=torch.complex64)
mask = torch.ones(1, 1, 1, 320, dtype=torch.bool)
with torch.no_grad():
    predictor(kspace, mask, torch.tensor([16]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_inference_takes_the_same_memory_for_any_number_of_cascades() -> None:
    few, many = (
        int(subprocess.check_output([sys.executable, "-c", PEAK_OF_INFERENCE, cascades], text=True))
        for cascades in ("2", "12")
    )
    # Each of ten more cascades would keep at least the outputs of the outermost two blocks.
    assert many - few < 4 * 16 * 320 * 320 * 4
