"""Is a failing run detected? Each kind of failure is provoked, by settings alone.

    python -m benchmarks.provoked_failures start=logs/demo 2> /dev/null

From the weights of a stage 1, on its data, one short stage 2 after the other, each with settings
that are known to ruin it; the first is the unchanged recipe, for which no failure may be reported.
For each: what the log reported and how often, and how validation of the final predictor differs
from that of the initial one. Exits with status 1 if a failure was not reported, or one was reported
where there was none.
"""

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from banding_removal.command_line import user_errors
from banding_removal.config.overrides import from_words
from banding_removal.config.recipes import ADVERSARY, DIRECT, PAPER
from banding_removal.config.settings import REPOSITORY, Settings
from banding_removal.errors import ConfigError, RunFailedError
from banding_removal.runs.checkpoint import find_checkpoint, load_checkpoint
from banding_removal.runs.folder import latest_run
from banding_removal.runs.log import read_records
from banding_removal.runs.trained import saved_settings
from banding_removal.training.loop import train


@dataclass(frozen=True, kw_only=True)
class Provoked:
    """What is run."""

    start: Path | None = None  # a run of stage 1, or its checkpoint
    logs: Path = REPOSITORY / "logs" / "provoked"
    epochs: int = 3
    epoch_fraction: float = 0.3  # of the training slices
    failures: tuple[str, ...] = ()  # none: all


REPORTS = ("the run is failing", "the adversary is at chance")  # how such records begin
_ADAM: dict[str, Any] = {"optimizer": "adam", "lr": 3e-4, "lr_decay": 0.0}
# Settings that ruin a run, and what must be reported.
FAILURES: dict[str, tuple[dict[str, Any], str | None]] = {
    "none": (DIRECT, None),
    "learning rate": ({**DIRECT, "lr": 0.3}, "SSIM has fallen"),
    "loss explodes": ({**DIRECT, "lr_drop_every": 1, "lr_drop_factor": 2e3}, "the loss explodes"),
    "no number": ({**DIRECT, **_ADAM, "lr": 1e30}, "loss is nan"),
    "streaks across": (
        {**DIRECT, "streak_weight": 0.04, "streak_below": 2.0},
        "streaks run across the phase-encode axis",
    ),
    "texture": (
        {
            **ADVERSARY,
            **_ADAM,
            "adversary_strength": 5.0,
            "adversary_view": "image",
            "adversary_changes": "everything",
            "adversary_background": None,
        },
        "texture is added across the streaks",
    ),
    "detail lost": ({**DIRECT, "streak_weight": 0.3}, "SSIM has fallen"),
    "adversary at chance": ({**PAPER, **_ADAM}, "the adversary is at chance"),
}


def provoke(settings: Settings, failure: str) -> bool:
    """Train with what ruins a run and print a line.

    Args:
        settings: of the run, but for that.
        failure: one of FAILURES.

    Returns:
        Whether the expected failure was reported, or none where none is expected.
    """
    changes, expected = FAILURES[failure]
    name = failure.replace(" ", "_")
    ending = "complete"
    try:
        with redirect_stdout(sys.stderr):
            train(replace(settings, **changes, name=name))
    except RunFailedError:
        ending = "ended"
    folder = latest_run(settings.logs, name)
    assert folder is not None, "train() makes it"
    reported = [text for _, _, text in read_records(folder / "log.txt") if text.startswith(REPORTS)]
    print(
        f"{failure:20} {ending:9} {len(reported):2} {_change(folder)}  {(reported or ['-'])[0]}",
        flush=True,
    )
    return not reported if expected is None else any(expected in text for text in reported)


def _change(folder: Path) -> str:
    """B, and what has changed across it and in SSIM, at the last validation that was good."""
    checkpoint = load_checkpoint(find_checkpoint(folder))
    rows = [row for row in checkpoint.history if "val_banding" in row]
    if not rows:
        return f"{'-':>6} {'-':>6} {'-':>8}"
    start, row = checkpoint.start, rows[-1]
    across = row["val_banding_across"] - start["banding_across"]
    return f"{row['val_banding']:6.2f} {across:+6.2f} {row['val_ssim'] - start['ssim']:+8.4f}"


def main(words: Sequence[str]) -> None:
    """Provoke each failure in turn."""
    settings = from_words(Provoked(), [*words])
    unknown = [name for name in settings.failures if name not in FAILURES]
    if unknown:
        raise ConfigError(f"{', '.join(unknown)}: none of {', '.join(FAILURES)}")
    if settings.start is None:
        raise ConfigError("start=... names a run of stage 1")
    path = find_checkpoint(settings.start)
    short = replace(
        saved_settings(path, load_checkpoint(path)),
        logs=settings.logs,
        stage="train",
        init_from=str(path),
        epochs=settings.epochs,
        epoch_fraction=settings.epoch_fraction,
        validate_every=1,
    )
    print(f"{'provoked':20} {'run':9} {'n':>2} {'B':>6} {'across':>6} {'SSIM':>8}  first report")
    found = {name: provoke(short, name) for name in settings.failures or FAILURES}
    missed = [name for name, right in found.items() if not right]
    if missed:
        sys.exit(f"not reported as they should be: {', '.join(missed)}")


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
