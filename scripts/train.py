"""Stage 2: train the pretrained predictor against the orientation adversary, as in the paper.

    ipython scripts/train.py
    ipython scripts/train.py data_path=/data/knee restart=logs/pretrain_2 adversary_strength=2
    ipython scripts/train.py recipe=ours
    ipython scripts/train.py resume=logs/train

It begins from the weights of the newest run of scripts/pretrain.py. Pictures, curves, log and
checkpoints go to logs/train, and logs/run shows the newest run.
"""

DATA_PATH = "/path/to/fastmri/knee"  # edit: holds multicoil_train/*.h5 and multicoil_val/*.h5

from pathlib import Path

from banding_removal.command_line import run
from banding_removal.config import Settings

# What is not named here is as in scripts/pretrain.py.
SETTINGS = Settings(
    name="train",
    after="pretrain",
    data_path=Path(DATA_PATH),
    cascades=12,
    epochs=1000,
    epoch_fraction=0.2,
    lr=1e-4,
    lr_drop_every=40,
    lr_min=1e-6,
    adversary="shallow",
    adversary_lr=1e-4,
    adversary_strength=1.0,
    adversary_target="uncertain",
    reg_param=0.1,
    validate_every=5,
    grid_every=5,
)

# With recipe=ours: every slice five times, as in docs/results.md.
OURS = {"epochs": 25, "lr": 3e-4, "lr_drop_every": None, "lr_min": 0.0, "lr_decay": 0.7}

if __name__ == "__main__":
    run(SETTINGS, ours=OURS)
