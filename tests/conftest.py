"""What several test files need: one torch thread a test, toy volumes, toy settings."""

from pathlib import Path

import pytest
import torch

from banding_removal.config.settings import Settings
from banding_removal.data.dataset import SliceDataset
from banding_removal.runs.datasets import make_datasets
from tests.support.fastmri_files import write_volume

torch.set_num_threads(1)  # tests run side by side


@pytest.fixture
def data_path(tmp_path: Path) -> Path:
    """Three training and two validation volumes of different widths, contrasts and scanners."""
    folder = tmp_path / "data"
    for i, width in enumerate((28, 28, 33)):
        path = folder / "multicoil_train" / f"file{i}.h5"
        write_volume(path, slices=2, size=(32, width), seed=i)
    for i, (scanner, acquisition) in enumerate((("Aera", "CORPD_FBK"), ("Avanto", "CORPDFS_FBK"))):
        path = folder / "multicoil_val" / f"val{i}.h5"
        write_volume(path, slices=3, scanner=scanner, acquisition=acquisition, seed=10 + i)
    return folder


@pytest.fixture
def settings(tmp_path: Path, data_path: Path) -> Settings:
    return Settings(
        name="toy",
        logs=tmp_path / "logs",
        data_path=data_path,
        device="cpu",
        workers=0,
        cascades=1,
        chans=2,
        pools=1,
        sens_chans=2,
        acs_lines=(6,),
        epochs=2,
        lr=1e-3,
        lr_drop_every=3,
        log_every=1,
        grid_slices=3,
    )


@pytest.fixture
def train_set(settings: Settings) -> SliceDataset:
    return make_datasets(settings)[0]
