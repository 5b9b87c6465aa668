"""Write the page of a run, or of several runs side by side: slices by epoch, curves, settings, log.

    ipython scripts/page.py
    ipython scripts/page.py 'runs=[logs/pretrain,logs/train]' output=both.html

Training keeps the page of its own run, `index.html` in its folder; this script writes it for runs
of earlier versions, too. With several runs, slice, epoch, zoom and window are linked.
"""

from banding_removal.command_line import typed_settings, user_errors
from banding_removal.pictures.run_page import PageSettings, page_of_runs

if __name__ == "__main__":
    with user_errors():
        print(f"the page is {page_of_runs(typed_settings(PageSettings()))}")
