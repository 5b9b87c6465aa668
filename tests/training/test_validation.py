"""Banding at validation: every slice in both orientations."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from banding_removal.data.dataset import Draw, SliceDataset
from banding_removal.data.index import index_folder
from banding_removal.data.masks import MaskSampler
from banding_removal.data.operators import rss, to_image
from banding_removal.data.phantom.files import write_dataset
from banding_removal.data.phantom.spec import MEDIUM
from banding_removal.metrics.banding import banding_of_slice
from banding_removal.metrics.low_signal import volume_scale
from banding_removal.metrics.statistics import summarize
from banding_removal.processes.team import Team
from banding_removal.training.report import epoch_line
from banding_removal.training.validation import Validator
from tests.support.fastmri_files import write_volume
from tests.support.runs import ZeroFilled

CPU = torch.device("cpu")
MASKS = MaskSampler(kind="magic", accelerations=(4,), acs=(12,))


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> SliceDataset:
    folder = tmp_path_factory.mktemp("phantom")
    spec = replace(MEDIUM, slices=4)
    write_dataset(folder, spec, train_volumes=0, val_volumes=2, seed=3)
    volumes = index_folder(folder / "multicoil_val", cache_folder=folder / "index")
    return SliceDataset(volumes, MASKS, seed=0)


def validator(dataset: SliceDataset, display: tuple[int, ...] = ()) -> Validator:
    return Validator(dataset, display=display, device=CPU, workers=0, l1_weight=0.01, team=Team())


def zero_filled() -> ZeroFilled:
    return ZeroFilled(cascades=1, chans=2, pools=1, sens_chans=2)


def test_banding_figures_are_those_of_both_orientations_of_every_slice(
    phantom: SliceDataset,
) -> None:
    result = validator(phantom, (1, 6)).run(zero_filled())
    assert result is not None
    slices = []
    for index, (volume, slice_index) in enumerate(phantom.places):
        along_x = phantom[Draw(epoch=0, index=index, rotated=False)]
        along_y = phantom[Draw(epoch=0, index=index, rotated=True)]
        assert along_x.target is not None
        r_x = rss(to_image(along_x.masked_kspace))[0]
        r_y = rss(to_image(along_y.masked_kspace))[0].T
        slices.append(
            banding_of_slice(
                r_x,
                r_y,
                along_x.target[0],
                scale=volume_scale(phantom.targets(volume)),
                volume=phantom.volumes[volume].name,
                slice_index=slice_index,
            )
        )
        if index == 6:
            assert torch.equal(result.display[1].pair.along_x, r_x)
            assert result.display[1].pair.along_y is not None
            assert torch.equal(result.display[1].pair.along_y, r_y)
            assert result.display[1].banding == slices[-1]
    low = summarize(slices).low_signal
    assert low.slices > 0
    assert result.metrics["banding"] == low.contribution.value
    assert result.metrics["banding_signed_excess"] == low.signed_excess.value
    assert result.metrics["banding_along"] == low.along.value
    assert result.metrics["banding_across"] == low.across.value
    groups = {volume.group for volume in phantom.volumes}
    assert {f"banding/{group}" for group in groups} <= set(result.metrics)
    row = {"epoch": 1, "train_loss": 0.5, "step_ms": 1.0, "wait_ms": 0.0}
    row |= {f"val_{key}": value for key, value in result.metrics.items()}
    assert f"signed excess {low.signed_excess.value:.2f} %" in epoch_line(row, 1, CPU)
    # a row of an earlier version, which has the excess without its sign
    earlier = {"val_banding_excess": 0.25, **row}
    del earlier["val_banding_signed_excess"]
    assert "signed excess 0.25 %" in epoch_line(earlier, 1, CPU)


def test_image_quality_is_that_of_the_slices_as_they_were_acquired(phantom: SliceDataset) -> None:
    result = validator(phantom).run(zero_filled())
    assert result is not None
    name = phantom.volumes[0].name
    images = [rss(to_image(phantom[i].masked_kspace))[0].double() for i in range(4)]
    error = sum(
        float((image - target).square().sum())
        for image, target in zip(images, phantom.targets(0).double(), strict=True)
    )
    energy = float(phantom.targets(0).double().square().sum())
    assert result.volumes[name].nmse == pytest.approx(error / energy, rel=1e-6)


def test_volumes_undersampled_by_the_scanner_have_no_banding_figures(tmp_path: Path) -> None:
    write_volume(tmp_path / "measured.h5", slices=2, mask=np.arange(28) % 2 == 0)
    volumes = index_folder(tmp_path, cache_folder=tmp_path / "index")
    dataset = SliceDataset(volumes, MASKS, seed=0)
    result = validator(dataset, (0,)).run(zero_filled())
    assert result is not None
    assert np.isnan(result.metrics["banding"])
    assert np.isfinite(result.metrics["ssim"])
    assert result.display[0].pair.along_y is None
    row = {"epoch": 1, "train_loss": 0.5, "step_ms": 1.0, "wait_ms": 0.0}
    row |= {f"val_{key}": value for key, value in result.metrics.items()}
    assert "banding not measurable" in epoch_line(row, 1, CPU)
    with pytest.raises(ValueError, match=r"measured\.h5 was undersampled by the scanner"):
        dataset[Draw(epoch=0, index=0, rotated=True)]
