"""Compare sets of reconstructions: image quality, banding, and the orientation probe.

    ipython scripts/evaluate.py 'sets={pretrained: logs/pretrain, adversarial: logs/train}'
    ipython scripts/evaluate.py 'sets={direct: logs/train, espirit: /data/espirit}' \
        volumes=/data/knee/multicoil_val filter.magnet=3 output=logs/against_espirit

A set is a run's folder, one of its checkpoints or public weights, which reconstructs the volumes
with phase encoding along either axis; or a folder of fastMRI-format files that any other software
has written: `x/*.h5` and `y/*.h5`, each with an upright dataset `reconstruction` [slice, h, w]. A
folder of *.h5 files without x/ and y/ has phase encoding along x only. The output folder gets
table.md (also printed), figure.png, results.json, volumes.csv and slices.csv. `probe=false` leaves
out the probe, which takes about a minute per set.
"""

from banding_removal.command_line import typed_settings, user_errors
from banding_removal.evaluation.settings import EvaluateSettings, evaluate_files

if __name__ == "__main__":
    with user_errors():
        settings = typed_settings(EvaluateSettings())
        print(evaluate_files(settings))
        print(f"the figure is {settings.output / 'figure.png'}")
