"""Reconstruct volumes with a trained predictor, into HDF5 files in fastMRI's submission format.

    ipython scripts/reconstruct.py checkpoint=logs/train volumes=/data/knee/multicoil_test
    ipython scripts/reconstruct.py checkpoint=logs/train output=/data/reconstructions nproc=4
    ipython scripts/reconstruct.py volumes=/data/knee/multicoil_val orientation=both

Volumes need no target. Fully sampled ones are undersampled as in the validation of the checkpoint's
training; those that the scanner undersampled keep their own mask. After an interruption, the same
command continues.
"""

from pathlib import Path

VOLUMES = "/path/to/fastmri/knee/multicoil_test"  # edit: a folder of *.h5 files, or one of them

from banding_removal.command_line import typed_settings, user_errors
from banding_removal.data.volume import VolumeError
from banding_removal.processes.launch import launch
from banding_removal.reconstruction.folder import reconstruct
from banding_removal.reconstruction.settings import ReconstructSettings

if __name__ == "__main__":
    with user_errors():
        defaults = ReconstructSettings(volumes=Path(VOLUMES))
        report = launch(reconstruct, typed_settings(defaults))
        if report is not None:
            print(report)
            if report.failures:
                raise VolumeError.of_all(report.failures)
