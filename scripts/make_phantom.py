"""Make the phantom data set, the default data of this repository.

ipython scripts/make_phantom.py
ipython scripts/make_phantom.py size=real folder=/data/phantom train_volumes=4
ipython scripts/make_phantom.py folder=/tmp/few train_volumes=2 val_volumes=1 slices=6

A run that was interrupted goes on where it stopped.
"""

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from banding_removal.command_line import user_errors
from banding_removal.config.settings import REPOSITORY, from_words
from banding_removal.data.phantom.files import SPLITS, write_dataset
from banding_removal.data.phantom.spec import DEMO, MEDIUM, REAL_SIZE, PhantomSpec
from banding_removal.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PhantomSettings:
    """What to make and where."""

    # demo: 6 coils, 96 x 96; medium: 128 x 128; real, as fastMRI: 15, 640 x 368, target 320 x 320
    size: Literal["demo", "medium", "real"] = "demo"
    folder: Path = REPOSITORY / "datasets" / "phantom"  # for multicoil_train and multicoil_val
    train_volumes: int = 24
    val_volumes: int = 8
    slices: int | None = None  # per volume; null: as the size has them
    seed: int = 0  # of the whole data set

    def __post_init__(self) -> None:
        for name in ("train_volumes", "val_volumes", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        self.spec()  # its ValueError, too, ends as a ConfigError of from_words

    def spec(self) -> PhantomSpec:
        """The specification of every volume."""
        spec = {"demo": DEMO, "medium": MEDIUM, "real": REAL_SIZE}[self.size]
        return spec if self.slices is None else replace(spec, slices=self.slices)


def main(words: list[str]) -> None:
    """Make the data set that the `key=value` words ask for, and say how to use it."""
    with user_errors():
        settings = from_words(PhantomSettings(), words)
        folder = settings.folder.resolve()
        written = write_dataset(
            folder,
            settings.spec(),
            train_volumes=settings.train_volumes,
            val_volumes=settings.val_volumes,
            seed=settings.seed,
        )
    print(f"{len(written)} new volumes in {folder}")
    for split in SPLITS:
        sizes = [path.stat().st_size for path in (folder / split).glob("*.h5")]
        print(f"  {split}: {len(sizes)} volumes, {sum(sizes) / 1e6:.0f} MB")
    print("\nTrain on them with")
    print(f"  ipython scripts/pretrain_dev.py {shlex.quote(f'data_path={folder}')}")
    print(f'or put this line at the top of a script:\n  DATA_PATH = "{folder}"')


if __name__ == "__main__":
    main(sys.argv[1:])
