"""Stage 1 for development: six cascades in one process, otherwise as scripts/pretrain.py.

    ipython scripts/pretrain_dev.py
    ipython scripts/pretrain_dev.py data_path=datasets/phantom epochs=2

Pictures, curves, log and checkpoints go to logs/pretrain_dev.
"""

DATA_PATH = "/path/to/fastmri/knee"  # edit: holds multicoil_train/*.h5 and multicoil_val/*.h5

from pathlib import Path

from banding_removal.command_line import run
from banding_removal.config.settings import Settings

# Settings not named here are the paper's, the defaults of Settings.
SETTINGS = Settings(
    name="pretrain_dev",
    stage="pretrain",
    data_path=Path(DATA_PATH),
    nproc=1,
    cascades=6,
    lr=1e-4,
    workers=2,
)

if __name__ == "__main__":
    run(SETTINGS)
