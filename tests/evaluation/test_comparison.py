import re
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from banding_removal.data.phantom.files import write_dataset
from banding_removal.data.phantom.spec import MEDIUM
from banding_removal.errors import ConfigError
from banding_removal.evaluation import comparison
from banding_removal.evaluation.comparison import (
    CompareSettings,
    _in_words,
    _of_slice,
    _table,
    compare,
)
from banding_removal.evaluation.remedies import blurred_across, dithered
from banding_removal.evaluation.summary import Metric


def test_dither_follows_the_square_root_of_the_local_signal() -> None:
    image = torch.full((200, 200), 0.04)
    image[:, 100:] = 0.64
    noise = dithered(image, 1.0, 0.05, (1, 2)) - image
    dark, bright = noise[:, 10:90].std(), noise[:, 110:190].std()
    assert float(dark) == pytest.approx(0.05 * 0.2, rel=0.02)
    assert float(bright) == pytest.approx(0.05 * 0.8, rel=0.02)
    assert torch.equal(dithered(image, 1.0, 0.05, (1, 2)) - image, noise)
    assert not torch.equal(dithered(image, 1.0, 0.05, (1, 3)) - image, noise)
    assert torch.equal(dithered(torch.zeros(20, 20), 1.0, 0.05, (1,)), torch.zeros(20, 20))


def test_blur_goes_across_the_streaks_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    along_x = torch.randn(64, 1, generator=generator).expand(64, 64)
    assert float(blurred_across(along_x, 1.0, phase_encode_axis=-1).std()) < 0.7
    kept = blurred_across(along_x.T, 1.0, phase_encode_axis=1)
    torch.testing.assert_close(kept, along_x.T)
    torch.testing.assert_close(
        blurred_across(along_x.T, 1.0, phase_encode_axis=0),
        blurred_across(along_x, 1.0, phase_encode_axis=1).T,
    )
    with pytest.raises(ValueError, match="sigma"):
        blurred_across(along_x, 0.0, phase_encode_axis=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three phantom volumes, and reconstructions of them with streaks of 1 % of q."""
    folder = tmp_path_factory.mktemp("compare")
    spec = replace(MEDIUM, slices=4)
    write_dataset(folder, spec, train_volumes=0, val_volumes=3, seed=5)
    rng = np.random.default_rng(0)
    for path in (folder / "multicoil_val").glob("*.h5"):
        with h5py.File(path) as file:
            target = file["reconstruction_rss"][()]
        amplitude = 0.01 * np.percentile(target, 99.5)
        slices, height, width = target.shape
        images = {
            "x": target + amplitude * rng.standard_normal((slices, height, 1)),
            "y": target + amplitude * rng.standard_normal((slices, 1, width)),
        }
        for axis, image in images.items():
            out = folder / "streaky" / axis / path.name
            out.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(out, "w") as file:
                file["reconstruction"] = image.astype(np.float32)
            clean = folder / "clean" / axis / path.name
            clean.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(clean, "w") as file:
                file["reconstruction"] = target
    return folder


def test_sets_and_remedies_are_compared_in_a_picture_and_a_table(
    folder: Path, tmp_path: Path
) -> None:
    settings = CompareSettings(
        sets={"streaky": folder / "streaky", "clean": folder / "clean"},
        volumes=folder / "multicoil_val",
        output=tmp_path / "out",
        logs=tmp_path / "logs",
        rows=2,
    )
    found = compare(settings)
    names = ["streaky", "clean", "streaky, dithered", "streaky, blurred"]
    assert [result.name for result in found.evaluation.sets] == names
    figures = {r.name: r.overall.metrics for r in found.evaluation.sets}
    assert figures["streaky"]["low_signal.signed_excess"].value == pytest.approx(1.0, rel=0.15)
    assert figures["clean"]["low_signal.contribution"].value == 0
    # Each remedy shows in the figures as what it is.
    dither, blur = figures["streaky, dithered"], figures["streaky, blurred"]
    b = figures["streaky"]["low_signal.contribution"].value
    assert dither["low_signal.contribution"].value < b
    assert dither["low_signal.signed_excess"].value == pytest.approx(1.0, rel=0.2)
    assert dither["nmse"].value > figures["streaky"]["nmse"].value
    assert blur["low_signal.along"].value < 0
    table = found.table.read_text()
    assert all(name in table for name in names)
    with Image.open(found.picture) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape[1] > 6 * 250  # target, zoom, four sets
    assert pixels.shape[0] > 8 * 250  # two slices, four rows each

    head, *lines = _table(found.evaluation)
    assert head[1:3] == ["SSIM", "NMSE"] and [line[0] for line in lines] == names
    assert all(re.fullmatch(r"-?[\d.]+  \[-?[\d.]+, -?[\d.]+\]", text) for text in lines[0][1:])

    fewer = compare(replace(settings, remedies=False, most_volumes=2, slices=(1, 3)))
    assert [result.name for result in fewer.evaluation.sets] == names[:2]
    assert fewer.evaluation.sets[0].overall.slices == 4


def test_titles_say_how_much_banding_a_slice_has(folder: Path, tmp_path: Path) -> None:
    settings = CompareSettings(
        sets={"streaky": folder / "streaky"},
        volumes=folder / "multicoil_val",
        output=tmp_path / "out",
        logs=tmp_path / "logs",
        rows=1,
        remedies=False,
    )
    with patch.object(comparison, "write_page", wraps=comparison.write_page) as write_page:
        compare(settings)
    along_x, along_y, textures, error = write_page.call_args.args[1]
    assert list(along_x.pictures) == ["target", "target, zoom", "streaky, x"]
    assert re.fullmatch(r"streaky, y: B \d\.\d\d dB", [*along_y.pictures][-1])
    assert [*textures.pictures][-1] == "streaky, texture"
    assert [*error.pictures][-1] == "streaky, error"
    assert all(row.smooth for row in (along_x, along_y, textures, error))
    assert _of_slice(None) == "B not measurable"


def test_a_table_has_no_empty_intervals() -> None:
    nan = float("nan")
    assert _in_words(Metric(value=0.5, low=nan, high=nan), ".2f") == "0.50"
    assert _in_words(Metric(value=nan, low=nan, high=nan), ".2f") == "not measurable"
    assert _in_words(Metric(value=0.5, low=0.25, high=1.0), ".2f") == "0.50  [0.25, 1.00]"


def test_a_comparison_of_nothing_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name one set"):
        compare(CompareSettings(output=tmp_path))
    for wrong in ({"rows": 0}, {"dither": -1.0}, {"most_volumes": 0}):
        with pytest.raises(ConfigError, match="must be above 0"):
            CompareSettings(**wrong)
