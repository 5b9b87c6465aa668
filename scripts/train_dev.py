"""Stage 2 for development: six cascades in one process, otherwise as scripts/train.py.

    ipython scripts/train_dev.py
    ipython scripts/train_dev.py data_path=datasets/phantom epochs=2

It begins from the weights of the newest run of scripts/pretrain_dev.py.
"""

DATA_PATH = "/path/to/fastmri/knee"  # edit: holds multicoil_train/*.h5 and multicoil_val/*.h5

from pathlib import Path

from banding_removal.command_line import run
from banding_removal.config import Settings

# What is not named here is the paper's (see Settings and scripts/train.py).
SETTINGS = Settings(
    name="train_dev",
    after="pretrain_dev",
    data_path=Path(DATA_PATH),
    nproc=1,
    cascades=6,
    epochs=1000,
    epoch_fraction=0.2,
    lr=1e-4,
    lr_min=1e-6,
    adversary="shallow",
    workers=2,
    validate_every=5,
    grid_every=5,
)

# With recipe=ours: every slice five times, as in docs/results.md.
OURS = {"epochs": 25, "lr": 3e-4, "lr_drop_every": None, "lr_min": 0.0, "lr_decay": 0.7}

if __name__ == "__main__":
    run(SETTINGS, ours=OURS)
