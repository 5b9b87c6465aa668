from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from banding_removal.config.settings import Settings
from banding_removal.data.masks import MaskSampler
from banding_removal.data.volume import VolumeError, read_volume
from banding_removal.errors import ConfigError
from banding_removal.evaluation.image_sets import path_set
from banding_removal.evaluation.sets_settings import SetsSettings, choose_volumes
from banding_removal.evaluation.show_banding import ShowSettings, show
from banding_removal.metrics.slice_pair import SlicePair
from tests.support.fastmri_files import write_volume
from tests.support.predictors import save_predictor

CPU = torch.device("cpu")
TRAINED = Settings(device="cpu", cascades=1, chans=2, pools=1, sens_chans=2, acs_lines=(6,))


def test_a_checkpoint_is_evaluated_with_other_masks_if_they_are_given(tmp_path: Path) -> None:
    files = [read_volume(write_volume(tmp_path / "a.h5", slices=2))]
    run = save_predictor(tmp_path / "run", TRAINED)

    def pairs(masks: MaskSampler | None) -> list[SlicePair]:
        found = path_set("a", run, files, slice_range=(1, None), device=CPU, masks=masks)
        return list(found.slices)

    (own,), (same,) = pairs(None), pairs(TRAINED.mask_sampler())
    (other,) = pairs(MaskSampler(kind="magic", accelerations=(2,), acs=(6,)))
    assert own.along_y is not None and same.along_y is not None and other.along_y is not None
    for image, image_same, image_other in (
        (own.along_x, same.along_x, other.along_x),
        (own.along_y, same.along_y, other.along_y),
    ):
        assert torch.equal(image, image_same)
        assert not torch.equal(image, image_other)
    with pytest.raises(ConfigError, match=r"run.* on a\.h5: 40 centre lines"):
        pairs(MaskSampler(kind="magic", accelerations=(4,), acs=(40,)))


def test_masks_are_refused_for_images_from_files(tmp_path: Path) -> None:
    files = [read_volume(write_volume(tmp_path / "a.h5"))]
    with pytest.raises(ConfigError, match="masks are for checkpoints"):
        path_set(
            "a",
            tmp_path,
            files,
            slice_range=(None, None),
            device=CPU,
            masks=TRAINED.mask_sampler(),
        )


def test_reconstructions_may_have_a_channel_and_hidden_files_beside_them(tmp_path: Path) -> None:
    files = [read_volume(write_volume(tmp_path / "data" / "a.h5", slices=2))]
    images = np.arange(2 * 24 * 24, dtype=np.float32).reshape(2, 1, 24, 24)
    (tmp_path / "x").mkdir()
    with h5py.File(tmp_path / "x" / "a.h5", "w") as file:
        file["reconstruction"] = images
    (tmp_path / "x" / "._a.h5").write_bytes(b"side file of a Mac")
    found = path_set("a", tmp_path, files, slice_range=(None, None), device=CPU)
    assert [tuple(pair.along_x.shape) for pair in found.slices] == [(24, 24), (24, 24)]
    found = path_set("a", tmp_path, files, slice_range=(1, None), device=CPU)
    assert torch.equal(next(iter(found.slices)).along_x, torch.from_numpy(images[1, 0]))


def test_evaluation_leaves_bad_volumes_out_if_it_may(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "data"
    write_volume(folder / "good.h5")
    write_volume(folder / "no_target.h5", with_target=False)
    (folder / "text.h5").write_text("no HDF5 file")
    settings = SetsSettings(sets={"a": tmp_path}, volumes=folder, logs=tmp_path)
    with pytest.raises(VolumeError, match=r"text\.h5"):
        choose_volumes(settings)
    files = choose_volumes(replace(settings, skip_bad_volumes=True))
    assert [file.name for file in files] == ["good.h5"]
    assert "text.h5" in caplog.text and "no_target.h5: has no target" in caplog.text


def test_the_picture_of_banding_leaves_bad_volumes_out_if_it_may(
    tmp_path: Path, settings: Settings
) -> None:
    (settings.data_path / "multicoil_val" / "text.h5").write_text("no HDF5 file")
    run = save_predictor(tmp_path / "run", settings)
    with pytest.raises(VolumeError, match=r"text\.h5"):
        show(ShowSettings(checkpoint=run, device="cpu"))
    picture = show(ShowSettings(checkpoint=run, device="cpu", skip_bad_volumes=True))
    assert picture.exists()


def test_only_the_slices_that_are_asked_for_are_reconstructed(tmp_path: Path) -> None:
    files = [read_volume(write_volume(tmp_path / f"{name}.h5", slices=3)) for name in "ab"]
    run = save_predictor(tmp_path / "run", TRAINED)

    def pairs(only: set[tuple[str, int]] | None) -> list[SlicePair]:
        found = path_set("a", run, files, slice_range=(None, None), device=CPU, only=only)
        return list(found.slices)

    every, (one,) = pairs(None), pairs({("b.h5", 1)})
    assert len(every) == 6
    assert (one.name, one.slice_index) == ("b.h5", 1)
    assert torch.equal(one.along_x, every[4].along_x)
