"""Stage 1: pretrain the predictor on fastMRI knee data, with the paper's settings.

    ipython scripts/pretrain.py
    ipython scripts/pretrain.py data_path=/data/knee lr=1e-4 workers=8
    ipython scripts/pretrain.py resume=logs/pretrain       # with the settings of that run

Every setting can be changed with key=value: banding_removal/config/settings.py explains them. The
same command continues a run that was stopped. Pictures, curves, log and checkpoints go to
logs/pretrain; logs/run is a link to the newest run.
"""

DATA_PATH = "/path/to/fastmri/knee"  # edit: holds multicoil_train/*.h5 and multicoil_val/*.h5

from pathlib import Path

from banding_removal.command_line import run
from banding_removal.config.settings import Settings
from banding_removal.data.filters import VolumeFilter

SETTINGS = Settings(
    name="pretrain",
    stage="pretrain",
    data_path=Path(DATA_PATH),
    cascades=12,
    epochs=100,
    lr=3e-4,
    lr_drop_every=40,
    rotate_probability=0.5,
    mask="magic",
    accelerations=(4,),
    acs_lines=(16,),
    offsets_from_data=True,
    train_filter=VolumeFilter(magnet=1.5, width=(None, 740), square_target=True),
    val_filter=VolumeFilter(magnet=1.5, square_target=True),
)

if __name__ == "__main__":
    run(SETTINGS)
