"""Make the phantom: synthetic knee volumes in the fastMRI layout.

    ipython scripts/make_phantom.py
    ipython scripts/make_phantom.py size=real folder=/data/phantom train_volumes=4
    ipython scripts/make_phantom.py folder=/tmp/few train_volumes=2 val_volumes=1 slices=6

The default is the data set of the demo's stage 1. To train on it: data_path=datasets/phantom. After
an interruption, the same command makes the volumes that are missing.
"""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from banding_removal.command_line import typed_words, user_errors
from banding_removal.config.bounds import bounded, check_bounds
from banding_removal.config.overrides import from_words
from banding_removal.config.settings import REPOSITORY
from banding_removal.data.phantom.files import SPLITS, write_dataset
from banding_removal.data.phantom.spec import DEMO, MEDIUM, REAL_SIZE, PhantomSpec


@dataclass(frozen=True, kw_only=True)
class PhantomSettings:
    """The size of the phantom and its folder."""

    # demo: 6 coils, 96 x 96; medium: 6 coils, 128 x 128; real: 15 coils, 640 x 368, as in fastMRI
    size: Literal["demo", "medium", "real"] = "demo"
    folder: Path = REPOSITORY / "datasets" / "phantom"  # gets multicoil_train and multicoil_val
    train_volumes: int = bounded(24, at_least=0)
    val_volumes: int = bounded(8, at_least=0)
    slices: int | None = None  # per volume; null: the number that goes with the size
    # Training volumes vary in coils, noise, contrast and field of view, and half of them are random
    # shapes instead of knees. Validation volumes stay the same.
    vary: bool = False
    seed: int = bounded(0, at_least=0)  # of the whole data set

    def __post_init__(self) -> None:
        check_bounds(self)
        self.spec()  # from_words turns its ValueError into a ConfigError

    def spec(self) -> PhantomSpec:
        """The specification of every volume."""
        spec = {"demo": DEMO, "medium": MEDIUM, "real": REAL_SIZE}[self.size]
        return spec if self.slices is None else replace(spec, slices=self.slices)


def main(words: list[str]) -> None:
    """Make the data set and print how to use it."""
    with user_errors():
        settings = from_words(PhantomSettings(), words)
        folder = settings.folder.resolve()
        written = write_dataset(
            folder,
            settings.spec(),
            train_volumes=settings.train_volumes,
            val_volumes=settings.val_volumes,
            seed=settings.seed,
            vary=settings.vary,
        )
    print(f"{len(written)} new volumes in {folder}")
    for split in SPLITS:
        sizes = [path.stat().st_size for path in (folder / split).glob("*.h5")]
        print(f"  {split}: {len(sizes)} volumes, {sum(sizes) / 1e6:.0f} MB")
    print("\nTrain on them with")
    print(f"  ipython scripts/pretrain_dev.py {shlex.quote(f'data_path={folder}')}")
    print(f'or put this line at the top of a script:\n  DATA_PATH = "{folder}"')


if __name__ == "__main__":
    main(typed_words(PhantomSettings()))
