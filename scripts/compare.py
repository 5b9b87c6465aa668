"""Compare reconstructions side by side: a picture with enlarged dark parts, and a table.

    ipython scripts/compare.py 'sets={pretrained: logs/pretrain, trained: logs/train}' \
        volumes=/data/knee/multicoil_val
    ipython scripts/compare.py 'sets={demo: logs/demo, stage_2: logs/demo_stage_2}'

A set is as in scripts/evaluate.py. Without `volumes`, the phantom's are used. The first set is also
shown with two simple remedies, added noise (dithering) and blur across its streaks;
`remedies=false` leaves these out. Picture and table are written to logs/comparison.
"""

from banding_removal.command_line import typed_settings, user_errors
from banding_removal.evaluation.comparison import CompareSettings, compare
from banding_removal.evaluation.table import markdown

if __name__ == "__main__":
    with user_errors():
        found = compare(typed_settings(CompareSettings()))
        print(markdown(found.evaluation))
        print(f"the picture is {found.picture}, the table {found.table}")
