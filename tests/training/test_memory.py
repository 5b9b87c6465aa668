import subprocess
import sys

import torch

from banding_removal.model.predictor import Predictor

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
