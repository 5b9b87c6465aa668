"""The demo: make a synthetic data set, train both stages on it, and compare the images.

    make demo
    ipython scripts/demo.py epochs=2
    ipython scripts/demo.py recipe=direct

It takes 12 minutes on two idle CPU cores. Settings of the recipe apply to stage 2, all others to
both stages. With another data_path, no data are made. After an interruption, the same command
continues.
"""

from dataclasses import replace
from pathlib import Path

from banding_removal.command_line import settings_of, typed_words, user_errors
from banding_removal.config.demo import PHANTOM, PRETRAINING, SCHEDULES, STAGE_2, VARIED_PHANTOM
from banding_removal.config.recipes import ADVERSARY
from banding_removal.config.settings import Settings
from banding_removal.data.phantom.files import write_dataset
from banding_removal.data.phantom.spec import DEMO
from banding_removal.errors import ConfigError
from banding_removal.evaluation.comparison import CompareSettings, compare
from banding_removal.evaluation.table import overview
from banding_removal.pictures.run_page import PageSettings, page_of_runs
from banding_removal.processes.launch import launch
from banding_removal.processes.threads import split_on_cores
from banding_removal.runs.resume import completed_run
from banding_removal.training.loop import train

# Settings with these names apply to stage 2; all others apply to both stages.
STAGE_2_KEYS = ADVERSARY.keys() - {"paired"}


def main(words: list[str]) -> None:
    """Make the phantom if it is not there, train both stages, and print what to look at."""
    keys = [word.partition("=")[0] for word in words]
    if {"stage", "resume", "init_from"} & {*keys}:
        raise ConfigError("the demo sets stage, resume and init_from itself")
    of_both = [w for w, key in zip(words, keys, strict=True) if key not in STAGE_2_KEYS]
    pretraining = settings_of(PRETRAINING, of_both)
    stage_2 = settings_of(STAGE_2, words, SCHEDULES)
    if pretraining.name == stage_2.name:
        raise ConfigError("the demo makes two runs, which cannot have the same name")
    if pretraining.data_path == PHANTOM:
        write_dataset(PHANTOM, DEMO, train_volumes=24, val_volumes=8, seed=0)
    if stage_2.data_path == VARIED_PHANTOM:  # the same validation volumes
        write_dataset(VARIED_PHANTOM, DEMO, train_volumes=48, val_volumes=8, seed=0, vary=True)
    before = _run(pretraining)
    after = _run(replace(stage_2, init_from=str(before)))

    found = compare(
        CompareSettings(
            sets={"pretrained": before, "stage 2": after},
            volumes=pretraining.data_path / f"{pretraining.challenge}_val",
            filter=pretraining.val_filter,
            slices=pretraining.val_slices,
            output=after / "comparison",
            logs=pretraining.logs,
            device=pretraining.device,
        )
    )
    print(f"\n{overview(found.evaluation)}")
    print("\nThe demo is complete. Look at")
    print(f"  {_shown(found.picture)}: target, pretrained, stage 2, and simple remedies")
    for folder, what in ((before, "before"), (after, "after stage 2")):
        grid = max((folder / "grids").glob("epoch*.png"))
        print(f"  {_shown(grid)}: validation slices {what}")
    print(f"  {_shown(before / 'grids' / 'raw_grid.png')}: the input of the network")
    print(f"  {_shown(after / 'curves.png')}: stage 2 by epoch")
    print(f"  {_shown(found.table)}: all metrics, by region, acquisition and scanner")
    both = page_of_runs(PageSettings(runs=(before, after), output=after.parent / "demo.html"))
    print(f"Open {_shown(both)} in a browser: slices by epoch and curves of both stages")


def _run(settings: Settings) -> Path:
    settings = split_on_cores(settings)
    folder = completed_run(settings)
    if folder is not None:
        print(f"{_shown(folder)} is complete; remove it to train again")
        return folder
    return launch(train, settings)


def _shown(path: Path) -> Path:
    """Relative to the current folder, if it lies there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    with user_errors():
        main(typed_words(PRETRAINING))
