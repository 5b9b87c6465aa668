import base64
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from banding_removal.errors import ConfigError
from banding_removal.evaluation.image_files import KEY
from banding_removal.reader_study import make
from banding_removal.reader_study.blinding import arrange
from banding_removal.reader_study.key import read_key
from banding_removal.reader_study.make import make_study
from tests.support.studies import SIZE, SLICES, settings_of, write_sets

PIXELS = re.compile(r'id="pixels-([0-9a-f]+)-(\d)">([^<]*)<')


def study_of(page: str) -> dict[str, Any]:
    found = re.search(r'id="study">(.*)</script>', page)
    assert found is not None
    content: dict[str, Any] = json.loads(found[1])
    return content


def images_of(page: str) -> dict[tuple[str, int], np.ndarray]:
    return {
        (view, int(position)): np.frombuffer(base64.b64decode(text), "<u2").reshape(SIZE, SIZE)
        for view, position, text in PIXELS.findall(page)
    }


def test_every_page_shows_what_the_key_says(tmp_path: Path) -> None:
    words = make_study(settings_of(write_sets(tmp_path)))
    assert "5 cases from 2 volumes, 2 of them shown twice" in words and "1 mostly air" in words
    assert "fewer than 8 volumes, no difference can be significant" in words
    key = read_key(tmp_path / "study")
    assert sum(case.low_anatomy for case in key.cases) == 1
    assert len({case.place for case in key.cases}) == 5
    assert {case.orientation for case in key.cases} == {"x", "y"}
    for number, reader in enumerate(key.readers):
        page = (tmp_path / "study" / f"reader_{number + 1}.html").read_text()
        views = {view["id"]: view for view in study_of(page)["views"]}
        assert [view.id for view in reader.views] == list(views)
        images = images_of(page)
        assert len(images) == 2 * 7
        for view in reader.views:
            case = key.cases[view.case]
            with h5py.File(tmp_path / "a" / case.orientation / case.volume) as file:
                expected = file[KEY][case.slice_index]
                whole = file[KEY][()]
            white = views[view.id]["white"]
            q = float(np.percentile(whole, 99.5))
            for position, number_of_set in enumerate(view.sets):
                found = images[view.id, position] / white * q
                assert found[1:] == pytest.approx(expected[1:], abs=2 * q / white)
                mark = float(whole.max()) * (number_of_set + 1) / 100
                assert found[0, 0] == pytest.approx(mark, rel=0.01)


def test_images_are_of_one_size_and_pages_name_nothing(tmp_path: Path) -> None:
    make_study(settings_of(write_sets(tmp_path)))
    pages = [path.read_text() for path in sorted((tmp_path / "study").glob("*.html"))]
    assert len({len(text) for page in pages for _, _, text in PIXELS.findall(page)}) == 1
    key = read_key(tmp_path / "study")
    for page in pages:
        text = PIXELS.sub("", page)
        for name in (*key.sets, "v0", "v1", str(tmp_path), "Aera", "CORPD"):
            assert name not in text
        assert "://" not in text
        assert set(study_of(page)["views"][0]) == {"id", "height", "width", "white"}
    ids = [view.id for reader in key.readers for view in reader.views]
    assert len(set(ids)) == len(ids)  # two readers cannot compare their pages by names


def test_the_same_settings_give_the_same_slices_and_another_blinding(tmp_path: Path) -> None:
    write_sets(tmp_path)
    keys = []
    for name in ("one", "two"):
        make_study(settings_of(tmp_path, output=tmp_path / name))
        keys.append(read_key(tmp_path / name))
    assert keys[0].cases == keys[1].cases
    assert keys[0].study != keys[1].study
    assert keys[0].readers != keys[1].readers


def test_repeats_come_in_the_second_half_with_the_sets_in_another_order() -> None:
    reader = arrange(60, 3, 6, "reader 1")
    repeats = [(place, view) for place, view in enumerate(reader.views) if view.repeat]
    assert len(reader.views) == 66 and len(repeats) == 6
    for place, view in repeats:
        ((seen, first),) = (
            (i, other)
            for i, other in enumerate(reader.views)
            if other.case == view.case and not other.repeat
        )
        assert seen < 30 <= place
        assert first.sets != view.sets
    firsts = [view for view in reader.views if not view.repeat]
    assert sorted(view.case for view in firsts) == list(range(60))
    # six arrangements of three sets: each ten times
    assert {[v.sets for v in firsts].count(view.sets) for view in firsts} == {10}
    assert [v.case for v in firsts] != list(range(60))


def test_cases_are_spread_over_the_volumes(tmp_path: Path) -> None:
    folder = write_sets(tmp_path, volumes=4)
    make_study(settings_of(folder, cases=6, low_anatomy=0, orientations="x"))
    cases = read_key(folder / "study").cases
    counts = sorted(sum(case.volume == f"v{i}.h5" for case in cases) for i in range(4))
    assert counts == [1, 1, 2, 2]
    assert not any(case.low_anatomy for case in cases)
    assert {case.orientation for case in cases} == {"x"}


def test_too_few_airy_slices_are_filled_up_with_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_sets(tmp_path)
    make_study(settings_of(folder, low_anatomy=0.8))
    assert sum(case.low_anatomy for case in read_key(folder / "study").cases) == 2
    assert "2 instead of 4 cases are mostly air" in caplog.text


def test_what_does_not_suit_a_study_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_sets(tmp_path, names=("a", "b", "bright"))
    good = settings_of(folder)
    with pytest.raises(ConfigError, match="name 2 to 4 sets"):
        make_study(replace(good, sets={"a": folder / "a"}))
    with pytest.raises(ConfigError, match=f"have {2 * SLICES} slices, fewer than cases=7"):
        make_study(replace(good, cases=7))
    for path in (folder / "bright").rglob("*.h5"):
        with h5py.File(path, "r+") as file:
            file[KEY][...] *= 2
    with pytest.raises(ConfigError, match=r"'bright' is in another unit .* by 0\.5"):
        make_study(replace(good, sets={"a": folder / "a", "bright": folder / "bright"}))
    for path in (folder / "b" / "y").iterdir():
        path.unlink()
    (folder / "b" / "y").rmdir()
    with pytest.raises(ConfigError, match=r"'b': v\d\.h5 has phase .* use orientations=x"):
        make_study(replace(good, sets={"a": folder / "a", "b": folder / "b"}))
    monkeypatch.setattr(make, "MOST_BYTES", 10_000)
    with pytest.raises(ConfigError, match=r"would have .* more than browsers open: use at most"):
        make_study(replace(good, sets={"a": folder / "a", "b": folder / "a"}))
    monkeypatch.undo()
    assert not list(good.output.glob("*"))
    make_study(replace(good, sets={"a": folder / "a", "b": folder / "b"}, orientations="x"))
    with pytest.raises(ConfigError, match="not empty"):  # the key of a running study is kept
        make_study(good)


def test_order_and_arrangement_differ_from_reader_to_reader() -> None:
    readers = [arrange(20, 2, 0, f"reader {i}") for i in range(3)]
    for one, other in pairwise(readers):
        assert [view.case for view in one.views] != [view.case for view in other.views]
