"""Stage 2 for development: six cascades, one GPU or CPU, otherwise as scripts/train.py.

    ipython scripts/train_dev.py
    ipython scripts/train_dev.py data_path=datasets/phantom epochs=2

It starts from the weights of the newest run of scripts/pretrain_dev.py. On a CPU, two processes
share the two orientations of each slice, and take the steps of one; nproc=1 is for a debugger.
"""

DATA_PATH = "/path/to/fastmri/knee"  # edit: holds multicoil_train/*.h5 and multicoil_val/*.h5

from pathlib import Path

from banding_removal.command_line import run
from banding_removal.config.recipes import ADVERSARY, PUBLISHED
from banding_removal.config.settings import Settings
from banding_removal.processes.threads import split_on_cores

# Settings not named here are as in scripts/pretrain_dev.py.
SETTINGS = Settings(
    name="train_dev",
    stage="train",
    init_from="pretrain_dev",  # the newest run of this name
    data_path=Path(DATA_PATH),
    cascades=6,
    epochs=25,
    epoch_fraction=0.1,  # of the slices, each in both orientations
    optimizer="muon",
    lr=2e-2,
    lr_drop_every=None,
    lr_decay=0.7,
    clip_grad_norm=1.0,
    workers=2,
    validate_every=5,
    grid_every=5,
    **ADVERSARY,
)

if __name__ == "__main__":
    # With one orientation per step: twice the steps, and as many images.
    one_orientation = {"epoch_fraction": 0.2}
    run(SETTINGS, split_on_cores, direct=one_orientation, none=one_orientation, paper=PUBLISHED)
