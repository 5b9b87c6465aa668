"""Reconstruct volumes with a trained predictor: HDF5 files as fastMRI's submissions have them.

    ipython scripts/reconstruct.py checkpoint=logs/train volumes=/data/knee/multicoil_test
    ipython scripts/reconstruct.py checkpoint=logs/train output=/data/reconstructions nproc=4
    ipython scripts/reconstruct.py volumes=/data/knee/multicoil_val orientation=both

Volumes may be with or without target, fully sampled (they are undersampled with the checkpoint's
mask settings, each volume as in validation) or undersampled by the scanner (their own mask is
used). The same command goes on where it was interrupted.
"""

from pathlib import Path

VOLUMES = "/path/to/fastmri/knee/multicoil_test"  # edit: a folder of *.h5 files, or one of them

import sys

from banding_removal.command_line import user_errors
from banding_removal.config.settings import from_words
from banding_removal.data.index import VolumeError
from banding_removal.processes.launch import launch
from banding_removal.reconstruction.folder import ReconstructSettings, reconstruct

if __name__ == "__main__":
    with user_errors():
        defaults = ReconstructSettings(volumes=Path(VOLUMES))
        report = launch(reconstruct, from_words(defaults, sys.argv[1:]))
        if report is not None:
            print(report)
            if report.failures:
                raise VolumeError.of_all(report.failures)
