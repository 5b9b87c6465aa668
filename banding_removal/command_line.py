"""What every script goes through: words to settings, errors to exit codes."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from banding_removal.config.overrides import describe, differences, from_words, plain
from banding_removal.config.recipes import with_recipe
from banding_removal.config.settings import Settings
from banding_removal.errors import ConfigError
from banding_removal.processes.console import unfailing_console
from banding_removal.processes.exit_status import USER_ERRORS, RankError, describe_error, exit_code
from banding_removal.processes.launch import launch
from banding_removal.processes.signals import Stopped
from banding_removal.runs.checkpoint import open_checkpoint
from banding_removal.runs.resume import with_public_network
from banding_removal.runs.trained import saved_settings
from banding_removal.training.loop import train

SettingsT = TypeVar("SettingsT")


@contextmanager
def user_errors() -> Iterator[None]:
    """Print errors that a user can fix (a path, a key, a file, a disk) without a traceback.

    They end the process with status 2; a run that was stopped or interrupted has a status of its
    own (`processes/exit_status.py`). Any other exception is a bug and keeps its traceback.
    """
    _open_missing_streams()
    with unfailing_console():
        try:
            yield
        except (*USER_ERRORS, RankError, Stopped, KeyboardInterrupt) as error:
            words = describe_error(error)
            if words is not None:
                print(f"\n{words}", file=sys.stderr)  # noqa: T201
            sys.exit(exit_code(error))


def _open_missing_streams() -> None:
    """Give a process whose output streams were closed (`2>&-`) some that lead nowhere.

    Otherwise Python has None for them, and the next file that is opened gets their number.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            stream = open(os.devnull, "w")  # noqa: SIM115, PTH123  # open to the end
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def typed_words(defaults: object) -> list[str]:
    """The words that were typed after the script's name, without a lone `--`.

    IPython takes words that begin with a dash as options of its own, with only a warning. They are
    included here, so that `from_words` refuses them under IPython as it does under Python. `help`
    alone prints the settings and ends the process with status 0.

    Args:
        defaults: settings of the script. A word with a dash before the script's name is included
            only if it begins with one of their names; others are meant for IPython.
    """
    words, typed = sys.argv[1:], sys.orig_argv
    # By file name: IPython makes the path in argv absolute, orig_argv has it as it was typed.
    names = [Path(word).name for word in typed]
    script = names.index(Path(sys.argv[0]).name) if Path(sys.argv[0]).name in names else len(typed)
    keys = {item.name for item in fields(defaults)}  # type: ignore[arg-type]
    taken = [
        word
        for place, word in enumerate(typed)
        if word.startswith("-")
        and word not in words
        and (place > script or word.lstrip("-").partition("=")[0].partition(".")[0] in keys)
    ]
    words = [word for word in (*words, *taken) if word != "--"]
    if words in (["help"], ["--help"]):
        print("key=value, with these keys, types and defaults:", *describe(defaults), sep="\n")  # noqa: T201
        sys.exit()
    return words


def typed_settings(defaults: SettingsT) -> SettingsT:
    """A script's settings with the words of its command line merged in, as in `from_words`."""
    return from_words(defaults, typed_words(defaults))


def settings_of(
    defaults: Settings, words: list[str], schedules: Mapping[str, dict[str, Any]] | None = None
) -> Settings:
    """A script's settings, changed by the recipe that the words name, then by the words.

    If `init_from` names weights alone, such as the public ones of fastMRI, the network is the one
    that they are of, where the words do not set it.

    A run that is resumed keeps the settings it was started with, instead of the script's; words
    change these, too. Its `logs` is the folder it lies in.

    Args:
        defaults: the script's settings.
        words: `key=value`, from the command line.
        schedules: by recipe, settings that go with it in this script.

    Raises:
        ConfigError: as in `from_words`; for a recipe or a start that a resumed run already has.
        CheckpointError: there is no run to resume, or no predictor has the weights to start from.
    """
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
    saved = saved_settings(*open_checkpoint(settings.resume), named=(settings.predictor,))
    resumed = from_words(saved, words)
    kept = differences(plain(settings), plain(resumed))
    if kept:
        print("the resumed run keeps these settings, not those of the script:", *kept, sep="\n  ")  # noqa: T201
    return resumed


def run(
    defaults: Settings,
    arrange: Callable[[Settings], Settings] | None = None,
    **schedules: dict[str, Any],
) -> Path:
    """Train with a script's settings and the words of its command line.

    Args:
        defaults: the script's settings.
        arrange: makes the settings to train with of those that the command line gives.
        schedules: by recipe, settings that go with it in this script.

    Returns:
        The run's folder.
    """
    with user_errors():
        settings = settings_of(defaults, typed_words(defaults), schedules)
        return launch(train, settings if arrange is None else arrange(settings))
