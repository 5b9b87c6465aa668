"""Judge any number of sets of reconstructions: image quality, banding, and the orientation probe.

    ipython scripts/evaluate.py 'sets={pretrained: logs/pretrain, adversarial: logs/train}'
    ipython scripts/evaluate.py 'sets={ours: logs/train, espirit: /data/espirit}' \
        volumes=/data/knee/multicoil_val filter.magnet=3 output=logs/against_espirit

A set is a run's folder or one of its checkpoints, which reconstructs the volumes along both axes,
or a folder of fastMRI-format files of any other software: `x/*.h5` and `y/*.h5`, each with a
dataset `reconstruction` [slice, h, w], upright (a plain folder has phase encoding along x alone).
Written to the output folder: table.md (also printed), figure.png, results.json, volumes.csv,
slices.csv. `probe=false` leaves the probe out, which takes about a minute a set.
"""

import sys

from banding_removal.command_line import user_errors
from banding_removal.config.overrides import from_words
from banding_removal.evaluation.settings import EvaluateSettings, evaluate_files

if __name__ == "__main__":
    with user_errors():
        settings = from_words(EvaluateSettings(), sys.argv[1:])
        print(evaluate_files(settings))
        print(f"look at {settings.output / 'figure.png'}")
