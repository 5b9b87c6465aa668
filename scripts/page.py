"""Write the run page of a run, or of several runs side by side: slices, curves, settings, log.

    ipython scripts/page.py
    ipython scripts/page.py 'runs=[logs/pretrain,logs/train]' output=both.html

Training writes the page of its own run, `index.html` in the run's folder. This script is for
several runs, whose slice, epoch, zoom and window are then linked, and for runs of earlier versions.
"""

from banding_removal.command_line import typed_settings, user_errors
from banding_removal.pictures.run_page import PageSettings, page_of_runs

if __name__ == "__main__":
    with user_errors():
        print(f"the page is {page_of_runs(typed_settings(PageSettings()))}")
