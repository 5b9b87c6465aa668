"""Show the banding: validation slices, reconstructed with phase encoding along x and along y.

    ipython scripts/show_banding.py
    ipython scripts/show_banding.py checkpoint=logs/pretrain output=banding.png slices=[5,17]

Streaks run along x in the third column and along y in the fourth, in dark tissue and in the
background. Data and masks are those that the checkpoint was trained with.
"""

from banding_removal.command_line import typed_settings, user_errors
from banding_removal.evaluation.show_banding import ShowSettings, show

if __name__ == "__main__":
    with user_errors():
        print(f"the picture is {show(typed_settings(ShowSettings()))}")
