"""The demo: a phantom data set, a small predictor pretrained on it, pictures of its banding.

    make demo
    ipython scripts/demo.py epochs=2

A few minutes on two CPU cores. Settings can be overridden as key=value, as for scripts/pretrain.py;
with another data_path no phantom is made.
"""

import sys
from pathlib import Path

from banding_removal.command_line import settings_of, user_errors
from banding_removal.config import REPOSITORY, Settings
from banding_removal.show_banding import ShowSettings, show
from banding_removal.training import train
from data.filters import VolumeFilter
from data.phantom import DEMO
from data.phantom_files import write_dataset

PHANTOM = REPOSITORY / "datasets" / "phantom"

SETTINGS = Settings(
    name="demo",
    data_path=PHANTOM,
    cascades=4,
    chans=8,
    pools=2,
    sens_chans=4,
    acs_lines=(12,),
    epochs=6,
    lr=2e-3,
    lr_drop_every=5,
    clip_grad_norm=1.0,
    workers=1,
    train_filter=VolumeFilter(),
    val_filter=VolumeFilter(),
)


def main(words: list[str]) -> None:
    """Make the phantom if it is not there, pretrain, and say what to look at."""
    settings = settings_of(SETTINGS, words)
    if settings.data_path == PHANTOM:
        write_dataset(PHANTOM, DEMO, train_volumes=24, val_volumes=8, seed=0)
    folder = train(settings)
    banding = show(ShowSettings(checkpoint=folder, device=settings.device))
    grids = sorted((folder / "grids").glob("epoch*.png"))
    print("\nThe demo is complete. Look at")
    print(f"  {_shown(banding)}: streaks along x (third column) and along y (fourth)")
    print(f"  {_shown(grids[-1])}: the validation slices after the last epoch")
    print(f"  {_shown(folder / 'grids' / 'raw_grid.png')}: what the network is given")
    print(f"  {_shown(folder / 'curves.png')}: loss and image quality by epoch")


def _shown(path: Path) -> Path:
    """Relative to the current folder where that is shorter."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
