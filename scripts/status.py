"""Print what a run is doing: epoch, step, speed, time left, last events, disk and memory.

    ipython scripts/status.py
    ipython scripts/status.py run=logs/train_2

The default is the newest run. The script only reads the run's files, so it works on any machine
that has access to them.
"""

from banding_removal.command_line import typed_settings, user_errors
from banding_removal.runs.status import StatusSettings, status

if __name__ == "__main__":
    with user_errors():
        print(status(typed_settings(StatusSettings()).run))
