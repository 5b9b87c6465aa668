"""A slice with phase encoding along x and along y."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from banding_removal.data.batch import collate
from banding_removal.data.dataset import SliceDataset
from banding_removal.data.masks import MaskSampler
from banding_removal.data.operators import rss, to_image
from banding_removal.data.volume import read_volume
from banding_removal.metrics.low_signal import volume_scale
from banding_removal.metrics.slice_pair import SlicePair
from banding_removal.reconstruction.pairs import pair_draws, reconstruct_pairs
from tests.support.fastmri_files import write_volume

CPU = torch.device("cpu")
EVERY_COLUMN = MaskSampler(kind="equispaced", accelerations=(1,), acs=(6,))
FOURTH_COLUMNS = MaskSampler(kind="magic", accelerations=(4,), acs=(6,))


class ZeroFilled(nn.Module):
    """The zero-filled images, times `factor`."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, masked_kspace: Tensor, *_: Tensor) -> Tensor:
        return self.factor * rss(to_image(masked_kspace))


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """A fully sampled volume, k-space 32 x 28, and one that the scanner undersampled."""
    return [
        write_volume(tmp_path / "a.h5", slices=2, target_size=(24, 20), acquisition="CORPD_FBK"),
        write_volume(tmp_path / "measured.h5", slices=1, mask=np.arange(28) % 2 == 0),
    ]


def dataset_of(paths: list[Path], masks: MaskSampler = FOURTH_COLUMNS) -> SliceDataset:
    return SliceDataset([read_volume(path) for path in paths], masks, seed=0)


def pairs_of(dataset: SliceDataset) -> list[SlicePair]:
    return list(reconstruct_pairs(ZeroFilled(), dataset, range(len(dataset)), CPU))


def test_both_images_are_upright_and_as_large_as_the_target(paths: list[Path]) -> None:
    for pair in pairs_of(dataset_of(paths[:1], EVERY_COLUMN)):
        assert pair.along_y is not None
        assert pair.target.shape == (24, 20)
        # With every column measured, the zero-filled image is the target.
        torch.testing.assert_close(pair.along_x, pair.target)
        torch.testing.assert_close(pair.along_y, pair.target)


def test_undersampling_shows_along_each_axis(paths: list[Path]) -> None:
    for pair in pairs_of(dataset_of(paths[:1])):
        assert pair.along_y is not None
        for image, other in ((pair.along_x, pair.along_y), (pair.along_y, pair.target)):
            assert (image - other).abs().max() > 0.1 * pair.target.max()


def test_a_pair_says_what_it_is_of(paths: list[Path]) -> None:
    dataset = dataset_of(paths)
    pairs = pairs_of(dataset)
    assert [(pair.name, pair.slice_index) for pair in pairs] == [
        ("a.h5", 0),
        ("a.h5", 1),
        ("measured.h5", 0),
    ]
    assert pairs[0].acquisition == "CORPD_FBK"
    assert pairs[1].data_range == pytest.approx(float(dataset.targets(0).max()), rel=1e-6)
    assert pairs[1].scale == volume_scale(dataset.targets(0))


def test_what_the_scanner_undersampled_is_reconstructed_along_x_only(paths: list[Path]) -> None:
    dataset = dataset_of(paths)
    draws = pair_draws(dataset, range(len(dataset)))
    assert [(draw.index, draw.rotated) for draw in draws] == [
        (0, False),
        (0, True),
        (1, False),
        (1, True),
        (2, False),
    ]
    pair = pairs_of(dataset)[2]
    assert pair.along_y is None
    assert pair.why_no_along_y == "undersampled by the scanner along x"


def test_batches_and_scales_may_come_from_the_caller(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = dataset_of(paths)
    indices = [1, 2]
    batches = [collate([dataset[draw]]) for draw in pair_draws(dataset, indices)]
    expected = [pairs_of(dataset)[index] for index in indices]
    monkeypatch.setattr(SliceDataset, "__getitem__", None)
    scales: dict[int, float] = {}
    for _ in range(2):
        pairs = list(
            reconstruct_pairs(ZeroFilled(), dataset, indices, CPU, batches=batches, scales=scales)
        )
        assert [pair.scale for pair in pairs] == [pair.scale for pair in expected]
        for pair, same in zip(pairs, expected, strict=True):
            assert torch.equal(pair.along_x, same.along_x)
        assert scales == {0: pairs[0].scale, 1: pairs[1].scale}
        monkeypatch.setattr(SliceDataset, "targets", None)  # known from the first round


def test_a_reconstruction_that_is_not_finite_is_named(paths: list[Path]) -> None:
    pairs = reconstruct_pairs(ZeroFilled(torch.nan), dataset_of(paths), [1], CPU)
    with pytest.raises(FloatingPointError, match=r"reconstruction of a\.h5 slice 1 is not finite"):
        next(pairs)


def test_the_caller_computes_gradients_between_pairs(paths: list[Path]) -> None:
    predictor = ZeroFilled().train()
    for pair in reconstruct_pairs(predictor, dataset_of(paths), [0, 1], CPU):
        assert torch.is_grad_enabled()
        assert not pair.along_x.requires_grad
    assert not predictor.training
