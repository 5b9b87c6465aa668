import logging
import subprocess
import sys

import pytest
import torch

from banding_removal.config.settings import Settings
from banding_removal.data.batch import Batch
from banding_removal.model.predictor import Predictor
from banding_removal.training import memory
from banding_removal.training.memory import Recomputation, fewest_recomputed, free_bytes


@pytest.mark.parametrize(
    ("budget", "count"),
    [(100, 0), (99, 1), (40, 1), (39, 3), (30, 3), (29, 4), (20, 4), (19, 5), (0, 5)],
)
def test_as_few_networks_are_recomputed_as_fit(budget: int, count: int) -> None:
    # The first is the sensitivity net, which goes through in parts; then a cascade at a time.
    assert fewest_recomputed([60, 10, 10, 10, 10], budget) == count


def batch() -> Batch:
    return Batch(
        measured=torch.zeros(4, 64, 48, dtype=torch.complex64),
        columns=torch.arange(48),
        mask=torch.ones(1, 1, 1, 48, dtype=torch.bool),
        acs_lines=torch.tensor([8]),
        target=torch.zeros(1, 1, 48, 48),
        data_range=torch.ones(1),
        rotated=torch.zeros(1),
        names=("a.h5",),
        slices=(0,),
    )


@pytest.mark.parametrize(("wanted", "chosen"), [("none", 0), ("all", 4)])
def test_all_and_none_are_what_they_say(wanted: str, chosen: int) -> None:
    predictor = Predictor(cascades=3, chans=4, pools=2, sens_chans=4)
    Recomputation(Settings(recompute=wanted), predictor).prepare(batch(), bfloat16=False)  # type: ignore[arg-type]
    assert predictor.recomputed == chosen


def test_the_automatic_choice_follows_memory_precision_and_processes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    predictor = Predictor(cascades=3, chans=4, pools=2, sens_chans=4)
    needed = int(sum(predictor.kept_bytes(batch().masked_kspace, 4)) / memory.USABLE) + 2

    def choose(free: int, *, bfloat16: bool = False, processes: int = 1) -> int:
        monkeypatch.setattr(memory, "free_bytes", lambda _device: free)
        Recomputation(Settings(), predictor, processes).prepare(batch(), bfloat16=bfloat16)
        return predictor.recomputed

    assert choose(needed) == 0
    assert "again" not in caplog.text
    assert choose(needed - 4) == 1
    assert "1 of 4 networks are run again in the backward pass" in caplog.text
    assert choose(needed - 4, bfloat16=True) == 0
    assert choose(needed, processes=2) > 0
    assert choose(0) == 4


def test_memory_that_is_free_is_told() -> None:
    assert 2**20 < free_bytes(torch.device("cpu")) < 2**50


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
    one = Predictor(cascades=1, chans=16, pools=2, sens_chans=2)
    kept = one.kept_bytes(torch.zeros(1, 2, 320, 320, dtype=torch.complex64), 4)[1]
    assert many - few < kept  # with what ten more keep it would be ten times that
