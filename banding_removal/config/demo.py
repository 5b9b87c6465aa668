"""The demo's settings, of which the benchmarks' are variants."""

from dataclasses import replace

from banding_removal.config.recipes import OURS
from banding_removal.config.settings import REPOSITORY, Settings
from banding_removal.data.filters import VolumeFilter

PHANTOM = REPOSITORY / "datasets" / "phantom"
# Stage 1 sees every slice in both orientations at once. It is long: against one that has not
# settled, more of the same gains more than any means against banding costs.
PRETRAINING = Settings(
    name="demo",
    data_path=PHANTOM,
    nproc=1,
    cascades=4,
    chans=8,
    pools=2,
    sens_chans=4,
    acs_lines=(10,),
    epochs=12,
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
STAGE_2 = replace(PRETRAINING, **OURS, name="demo_stage_2", epochs=10)
# With recipe=paper or recipe=adversary; the latter has two orientations a step, and half the steps.
AGAINST_ADVERSARY = {"optimizer": "adam", "lr": 3e-4, "lr_decay": 0.0}
