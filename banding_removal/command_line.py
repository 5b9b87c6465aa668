"""The front door of the scripts."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from banding_removal.config.recipes import with_recipe
from banding_removal.config.settings import Settings, differences, from_words, plain
from banding_removal.errors import ConfigError
from banding_removal.processes.exit_status import USER_ERRORS, RankError, describe_error, exit_code
from banding_removal.processes.launch import launch
from banding_removal.processes.signals import Stopped
from banding_removal.runs.checkpoint import find_checkpoint, load_checkpoint
from banding_removal.runs.resume import saved_settings
from banding_removal.training.loop import train


@contextmanager
def user_errors() -> Iterator[None]:
    """What a user can mend (a path, a key, a file, a disk) ends the process with status 2.

    The message goes to stderr without a traceback, as for a run that was stopped or interrupted,
    each with its own status (`banding_removal/processes/exit_status.py`). Any other exception is a
    bug and keeps its own.
    """
    try:
        yield
    except (*USER_ERRORS, RankError, Stopped, KeyboardInterrupt) as error:
        words = describe_error(error)
        if words is not None:
            print(f"\n{words}", file=sys.stderr)  # noqa: T201
        sys.exit(exit_code(error))


def settings_of(
    defaults: Settings, words: list[str], schedules: Mapping[str, dict[str, Any]] | None = None
) -> Settings:
    """A script's settings with the words of its command line laid over them.

    `recipe=name` stands for the settings of that recipe, with the schedule that the script has for
    it if it has one; other words may change them.

    A resume goes on with the settings that the run was started with, not with the script's; words
    are laid over those, too. Its `logs` are where it lies.

    Raises:
        ConfigError: as in `from_words`, and for --flags.
        CheckpointError: the run to resume is not there.
    """
    # IPython takes --flags for itself and leaves only a warning.
    script = next((i for i, w in enumerate(sys.orig_argv) if w == sys.argv[0]), len(sys.orig_argv))
    flags = [word for word in sys.orig_argv[script:] if word.startswith("--")]
    if flags:
        raise ConfigError(f"write settings without dashes: {' '.join(flags).replace('--', '')}")
    defaults, words = with_recipe(defaults, words, schedules or {})
    settings = from_words(defaults, words)
    if settings.resume is None:
        return settings
    path = find_checkpoint(settings.resume)
    saved = saved_settings(path, load_checkpoint(path))
    resumed = from_words(saved, [*words, f"resume={settings.resume}", "restart=null"])
    kept = differences(plain(settings), plain(resumed))
    if kept:
        print("settings of the resumed run, not of the script:", *kept, sep="\n  ")  # noqa: T201
    return resumed


def run(defaults: Settings, **schedules: dict[str, Any]) -> Path:
    """Train with a script's settings and the words of its command line; the run's folder.

    Args:
        defaults: the script's settings.
        schedules: other ones that go with a recipe, by its name.
    """
    with user_errors():
        return launch(train, settings_of(defaults, sys.argv[1:], schedules))
