"""Stage 2: train the pretrained predictor to remove its banding.

    ipython scripts/train.py
    ipython scripts/train.py data_path=/data/knee init_from=logs/pretrain_2 adversary_strength=0.05
    ipython scripts/train.py recipe=direct         # a direct loss in place of the adversary
    ipython scripts/train.py recipe=paper          # the orientation adversary as published
    ipython scripts/train.py init_from=/path/knee_leaderboard_state_dict.pt    # fastMRI's VarNet
    ipython scripts/train.py resume=logs/train

It starts from the weights of the newest run of scripts/pretrain.py. Pictures, curves, log and
checkpoints go to logs/train; logs/run is a link to the newest run.
"""

DATA_PATH = "/path/to/fastmri/knee"  # edit: holds multicoil_train/*.h5 and multicoil_val/*.h5

from pathlib import Path

from banding_removal.command_line import run
from banding_removal.config.recipes import ADVERSARY, PUBLISHED
from banding_removal.config.settings import Settings

# Settings not named here are as in scripts/pretrain.py.
SETTINGS = Settings(
    name="train",
    stage="train",
    init_from="pretrain",  # the newest run of this name
    data_path=Path(DATA_PATH),
    cascades=12,
    epochs=25,
    epoch_fraction=0.1,  # of the slices, each in both orientations
    optimizer="muon",
    lr=2e-2,
    lr_drop_every=None,
    lr_decay=0.7,
    clip_grad_norm=1.0,
    validate_every=5,
    grid_every=5,
    **ADVERSARY,
)

if __name__ == "__main__":
    one_orientation = {"epoch_fraction": 0.2}  # in each step
    run(SETTINGS, direct=one_orientation, none=one_orientation, paper=PUBLISHED)
