"""The front door of the scripts."""

import sys
from pathlib import Path

from banding_removal.checkpoint import CheckpointError
from banding_removal.config import ConfigError, Settings, from_words
from banding_removal.training import train
from data.index import VolumeError


def run(defaults: Settings) -> Path:
    """Train with a script's settings and the words of its command line; the run's folder.

    What the user can mend (a path, a key, a file) ends the process with status 2 and the message
    alone; everything else is a traceback.
    """
    try:
        return train(from_words(defaults, sys.argv[1:]))
    except (ConfigError, VolumeError, CheckpointError, FileNotFoundError) as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
