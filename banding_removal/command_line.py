"""The front door of the scripts."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from banding_removal.checkpoint import CheckpointError
from banding_removal.config import ConfigError, Settings, from_words
from banding_removal.training import train
from data.index import VolumeError


@contextmanager
def user_errors() -> Iterator[None]:
    """What a user can mend (a path, a key, a file, a disk) ends the process with status 2.

    The message goes to stderr without a traceback; any other exception is a bug and keeps its own.
    """
    try:
        yield
    except (ConfigError, VolumeError, CheckpointError, OSError) as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)


def run(defaults: Settings) -> Path:
    """Train with a script's settings and the words of its command line; the run's folder."""
    with user_errors():
        return train(from_words(defaults, sys.argv[1:]))
