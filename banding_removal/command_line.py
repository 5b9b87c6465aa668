"""What every script goes through: words to settings, errors to exit codes."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from banding_removal.config.overrides import differences, from_words, plain
from banding_removal.config.recipes import with_recipe
from banding_removal.config.settings import Settings
from banding_removal.errors import ConfigError
from banding_removal.processes.exit_status import USER_ERRORS, RankError, describe_error, exit_code
from banding_removal.processes.launch import launch
from banding_removal.processes.signals import Stopped
from banding_removal.runs.checkpoint import find_checkpoint, load_checkpoint
from banding_removal.runs.resume import saved_settings, with_public_network
from banding_removal.training.loop import train


@contextmanager
def user_errors() -> Iterator[None]:
    """Print errors that a user can fix (a path, a key, a file, a disk) without a traceback.

    They end the process with status 2; a run that was stopped or interrupted has a status of its
    own (`processes/exit_status.py`). Any other exception is a bug and keeps its traceback.
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
    """A script's settings, the recipe over them if the words name another one, the words on top.

    If `init_from` names weights alone, such as the public ones of fastMRI, the network is the one
    that they are of, where the words do not set it.

    A run that is resumed keeps the settings it was started with, instead of the script's; words
    change these, too. Its `logs` is the folder it lies in.

    Args:
        defaults: the script's settings.
        words: `key=value`, from the command line.
        schedules: by recipe, settings that go with it in this script.

    Raises:
        ConfigError: as in `from_words`; for --flags; for a recipe or a start that a resumed run
            already has.
        CheckpointError: there is no run to resume, or no predictor has the weights to start from.
    """
    # IPython takes --flags for itself and only warns.
    script = next((i for i, w in enumerate(sys.orig_argv) if w == sys.argv[0]), len(sys.orig_argv))
    flags = [word for word in sys.orig_argv[script:] if word.startswith("--")]
    if flags:
        raise ConfigError(f"write settings without dashes: {' '.join(flags).replace('--', '')}")
    keys = [word.partition("=")[0] for word in words]
    base = from_words(
        defaults, [w for w, key in zip(words, keys, strict=True) if key in ("stage", "recipe")]
    )
    if base.recipe != defaults.recipe:
        base = with_recipe(base, schedules or {})
    settings = from_words(base, words)
    if settings.resume is None:
        return from_words(with_public_network(settings), words)
    for key in ("recipe", "init_from"):
        if key in keys:
            raise ConfigError(f"a resumed run keeps its {key}; leave out resume for a new run")
    path = find_checkpoint(settings.resume)
    named = (settings.predictor,)
    resumed = from_words(saved_settings(path, load_checkpoint(path), named), words)
    kept = differences(plain(settings), plain(resumed))
    if kept:
        print("the resumed run keeps these settings, not those of the script:", *kept, sep="\n  ")  # noqa: T201
    return resumed


def run(defaults: Settings, **schedules: dict[str, Any]) -> Path:
    """Train with a script's settings and the words of its command line.

    Args:
        defaults: the script's settings.
        schedules: by recipe, settings that go with it in this script.

    Returns:
        The run's folder.
    """
    with user_errors():
        return launch(train, settings_of(defaults, sys.argv[1:], schedules))
