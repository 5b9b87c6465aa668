"""A run's folder with slices, for tests of its page."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from banding_removal.metrics.image_quality import Quality
from banding_removal.metrics.slice_pair import SlicePair
from banding_removal.pictures.kept_slices import keep_slices
from banding_removal.pictures.validation_grid import ValidatedSlice
from banding_removal.runs.metrics_file import METRICS

UNIT = 3e-4  # of the targets' maximum, as in fastMRI's files
LOG = """\
2026-01-01 10:00:00,000 INFO run folder <b>x</b> </script>
2026-01-01 10:00:01,000 INFO epoch 1/3: loss 0.3000; 5 ms a step
2026-01-01 10:00:02,000 WARNING the run is failing at step 7: a loss is nan. Rollback 1 of 5
2026-01-01 10:00:03,000 INFO epoch 2/3: loss 0.2000; 5 ms a step
2026-01-01 10:00:04,000 WARNING stopped by SIGTERM at step 12
2026-01-01 10:00:05,000 INFO resumed after epoch 2, step 12
2026-01-01 10:00:06,000 INFO epoch 3/3: loss 0.1000; 5 ms a step
2026-01-01 10:00:07,000 INFO the run is complete
"""
HISTORY = [
    {
        "epoch": epoch,
        "lr": 10.0**-epoch,
        "train_loss": 0.4 / epoch,
        "val_loss": 0.5 / epoch,
        "val_ssim": 0.7 + 0.01 * epoch,
        "val_banding": float("nan") if epoch == 1 else 2.0,
    }
    for epoch in (1, 2, 3)
]


def knee(size: int = 48) -> Tensor:
    """Air left, a ramp of dark tissue, bright tissue right; (size, size), at most 1."""
    image = torch.linspace(0, 0.3, size).expand(size, size).clone()
    image[:, 2 * size // 3 :] = 0.9
    noise = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    return (image + 0.01 * noise).abs().clamp(max=1)


def banded_slice(position: int, epoch: int, size: int = 48) -> ValidatedSlice:
    """A slice whose streaks get weaker from epoch to epoch; its unit is UNIT."""
    target = knee(size)
    generator = torch.Generator().manual_seed(100 * epoch + position)
    streaks = 0.02 / max(epoch, 0.5) * torch.randn(size, 1, generator=generator)
    pair = SlicePair(
        name=f"file{position}.h5",
        slice_index=position,
        acquisition="CORPD_FBK",
        data_range=UNIT,
        scale=0.9 * UNIT,
        target=UNIT * target,
        along_x=UNIT * (target + streaks).clamp(min=0),
        along_y=UNIT * (target + streaks.T).clamp(min=0) if position != 1 else None,
    )
    quality = Quality(nmse=float("nan"), psnr=30.0, ssim=0.8 + 0.01 * epoch, mse=1e-10)
    return ValidatedSlice(pair=pair, zero_filled=pair.target, quality=quality, banding=None)


def write_run(folder: Path, epochs: Sequence[int] = (1, 2, 3), slices: int = 3) -> Path:
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text(LOG)
    steps = [
        {"kind": "train", "epoch": 1 + step // 100, "step": step, "total_steps": 1e4}
        | {"loss": 0.5 - step / 1000, "grad_norm": 1.0}
        for step in range(10, 300, 10)
    ]
    (folder / METRICS).write_text("".join(json.dumps(row) + "\n" for row in steps))
    for epoch in epochs:
        keep_slices(folder, epoch, [banded_slice(i, epoch) for i in range(slices)])
    return folder
