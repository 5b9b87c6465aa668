"""Print what a run is doing: epoch, step, speed, time left, last events, disk and memory.

    ipython scripts/status.py
    ipython scripts/status.py run=logs/train_2

The default is the newest run. Only the run's files are read, so any machine that sees them will do.
"""

import sys

from banding_removal.command_line import user_errors
from banding_removal.config.overrides import from_words
from banding_removal.runs.status import StatusSettings, status

if __name__ == "__main__":
    with user_errors():
        print(status(from_words(StatusSettings(), sys.argv[1:]).run))
