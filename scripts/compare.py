"""Show predictors and simple remedies side by side: a picture with low-signal zooms, and a table.

    ipython scripts/compare.py 'sets={pretrained: logs/pretrain, adversarial: logs/train}'
    ipython scripts/compare.py 'sets={a: logs/train, b: logs/train_2}' volumes=/data/multicoil_val

The first set is also shown dithered, and blurred across its streaks; remedies=false leaves these
out. The table has the metrics of scripts/evaluate.py.
"""

from banding_removal.command_line import typed_settings, user_errors
from banding_removal.evaluation.comparison import CompareSettings, compare
from banding_removal.evaluation.table import markdown

if __name__ == "__main__":
    with user_errors():
        found = compare(typed_settings(CompareSettings()))
        print(markdown(found.evaluation))
        print(f"the picture is {found.picture}, the table {found.table}")
