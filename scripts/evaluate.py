"""Compare sets of reconstructions: image quality, banding, and the orientation probe.

    ipython scripts/evaluate.py 'sets={pretrained: logs/pretrain, trained: logs/train}' \
        volumes=/data/knee/multicoil_val
    ipython scripts/evaluate.py 'sets={trained: logs/train, espirit: /data/espirit}' \
        volumes=/data/knee/multicoil_val filter.magnet=3 output=logs/against_espirit

A set is either a network or a folder of images. A network is a run's folder, a checkpoint or public
weights; it reconstructs the volumes with phase encoding along x and along y. A folder of images (of
any software) holds `x/*.h5` and `y/*.h5`, one file per volume, each with a dataset
`reconstruction` [slice, h, w] in which anatomy is upright. A folder of *.h5 files without x/ and y/
has phase encoding along x only.

The folder `output` gets table.md (also printed), figure.png, results.json, volumes.csv and
slices.csv. Without `volumes`, the phantom's are used. `probe=false` leaves out the classifiers
that look for the orientation, which take about two minutes per set.
"""

from banding_removal.command_line import typed_settings, user_errors
from banding_removal.evaluation.settings import EvaluateSettings, evaluate_files

if __name__ == "__main__":
    with user_errors():
        settings = typed_settings(EvaluateSettings())
        print(evaluate_files(settings))
        print(f"the figure is {settings.output / 'figure.png'}")
