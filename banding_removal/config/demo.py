"""The settings of the demo, on which the benchmarks build."""

from dataclasses import replace
from typing import Any

from banding_removal.config.recipes import ADVERSARY
from banding_removal.config.settings import REPOSITORY, Settings
from banding_removal.data.filters import VolumeFilter

PHANTOM = REPOSITORY / "datasets" / "phantom"
# For stage 2: a network that has seen only knees of one kind removes the same amount of banding
# from every image, however much is there (docs/results.md).
VARIED_PHANTOM = REPOSITORY / "datasets" / "phantom_varied"
# Stage 1 shows every slice in both orientations. It has not converged after these epochs, which fit
# into a few minutes: benchmarks/efficacy_recipes.py trains longer.
PRETRAINING = Settings(
    name="demo",
    data_path=PHANTOM,
    cascades=4,
    chans=8,
    pools=2,
    sens_chans=4,
    acs_lines=(10,),
    epochs=7,
    paired=True,
    optimizer="muon",
    lr=2e-2,
    lr_drop_every=None,
    lr_decay=0.7,
    clip_grad_norm=1.0,
    workers=1,
    train_filter=VolumeFilter(),
    val_filter=VolumeFilter(),
)
# Recipe adversary takes two orientations per step, and therefore half the steps of the others.
STAGE_2 = replace(
    PRETRAINING,
    **ADVERSARY,
    stage="train",
    name="demo_stage_2",
    data_path=VARIED_PHANTOM,
    epochs=4,
    epoch_fraction=0.5,
)
SCHEDULES: dict[str, dict[str, Any]] = {
    "none": {"epoch_fraction": 1.0},
    "direct": {"epoch_fraction": 1.0},
    "paper": {"epoch_fraction": 1.0, "optimizer": "adam", "lr": 3e-4, "lr_decay": 0.0},
}
