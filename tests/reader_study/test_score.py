import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from banding_removal.errors import ConfigError, StudyError
from banding_removal.reader_study.key import Key, read_key, write_key
from banding_removal.reader_study.make import make_study
from banding_removal.reader_study.ratings import checksum, read_ratings
from banding_removal.reader_study.report import write_results
from banding_removal.reader_study.score import score_files
from banding_removal.reader_study.settings import ScoreSettings
from scripts import reader_study as script
from tests.support.studies import answers, settings_of, write_json, write_sets

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_sets(tmp_path_factory.mktemp("study"))
    make_study(settings_of(folder))
    return folder / "study"


def always(key: Key, reader: int, values: list[int]) -> dict[str, Any]:
    """A reader who gives every case the same ratings; by `noise`, all sets are equal."""
    views = range(len(key.readers[reader].views))
    return answers(
        key,
        reader,
        {(view, c): [1, 1] if c == "noise" else values for view in views for c in key.criteria},
    )


def test_ratings_are_unblinded_and_scored(study: Path, tmp_path: Path) -> None:
    key = read_key(study)
    files = [write_json(tmp_path / f"{i}.json", always(key, i, [2, 1])) for i in range(2)]
    ratings = read_ratings(files, key)
    assert ratings.first["banding"].shape == (2, 5, 2)
    assert (ratings.first["banding"] == [2, 1]).all()
    assert np.isfinite(ratings.again["banding"]).all(axis=2).sum() == 2 * 2
    result = score_files(ScoreSettings(study=study, ratings=tuple(files)))
    table = write_results(tmp_path / "results", result)
    assert "2 of 2 readers: reader 1 1 min, reader 2 1 min" in table
    row = next(line for line in table.splitlines() if line.startswith("| banding   | pretrained"))
    assert "1.00 [1.00, 1.00]" in row and "0.00 [0.00, 0.00]" in row
    assert "| all (5 cases)" in table and "| mostly air (1 case) " in table
    assert "| noise" in table and "| n/a" in table  # alpha of ratings that are all equal
    with (tmp_path / "results" / "means.csv").open() as file:
        means = list(csv.DictReader(file))
    worst = [m for m in means if (m["set"], m["criterion"]) == ("pretrained", "banding")]
    assert {float(m["rank"]) for m in worst} == {2.0}
    equal = [m for m in means if m["criterion"] == "noise"]
    assert {float(m["rank"]) for m in equal} == {1.5}
    assert (tmp_path / "results" / "comparisons.csv").read_text().count("\n") == 1 + 4
    assert (tmp_path / "results" / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_scores_are_reported_beside_ranks(study: Path, tmp_path: Path) -> None:
    key = replace(read_key(study), rating="score")
    write_key(tmp_path / "key.json", key, {})
    file = write_json(tmp_path / "0.json", always(key, 0, [2, 5]))
    result = score_files(ScoreSettings(study=tmp_path, ratings=(file,)))
    (mean,) = (
        m for m in result.means
        if (m.set, m.criterion, m.slices) == ("trained $x$", "overall", "all")
    )  # fmt: skip
    assert mean.score is not None
    assert (mean.rank.value, mean.score.value) == (1, 5)
    assert "trained $x$: score" in write_results(tmp_path / "results", result)


def _edited(content: dict[str, Any]) -> None:
    content["ratings"][3]["values"]["detail"][0] ^= 3


def _drop(content: dict[str, Any]) -> None:
    content["ratings"].pop()


def _double(content: dict[str, Any]) -> None:
    content["ratings"][1] = content["ratings"][0]


def _banding(value: Any) -> Change:
    return lambda content: content["ratings"][0]["values"].update(banding=value)


def _seconds(value: Any) -> Change:
    return lambda content: content["ratings"][0].update(seconds=value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop, "1 of 7 cases are missing"),
        (_double, "1 of 7 cases are doubled"),
        (lambda c: c["ratings"][0].update(id=[1]), "1 of 7 cases are unknown"),
        (_banding([1, 3]), r"rating 1: banding is \[1, 3\]; expected 2 whole numbers from 1"),
        (_banding([1, 1.5]), r"banding is \[1, 1\.5\]"),
        (_banding([True, 1]), r"banding is \[True, 1\]"),
        (_banding([1]), r"banding is \[1\]"),
        (_banding(None), "banding is None"),
        (_seconds(-1), "seconds is -1"),
        (_seconds(float("nan")), "seconds is nan"),
        (lambda c: c["ratings"][0]["values"].pop("noise"), "does not have a value for each of"),
        (lambda c: c.update(study="0" * 16), "belongs to another study"),
        (lambda c: c.update(reader="me"), "its reader is not one of this study"),
        (lambda c: c.update(format=2), "its format is 2, not 1"),
        (lambda c: c.update(kind="x"), "not a file of ratings"),
        (lambda c: c.update(ratings={}), "no list of ratings"),
        (lambda c: c.update(ratings=[1]), "no list of ratings"),
    ],
)
def test_ratings_that_cannot_be_right_are_refused_by_name(
    study: Path, tmp_path: Path, change: Change, message: str
) -> None:
    key = read_key(study)
    content = always(key, 0, [1, 2])
    change(content)
    content["checksum"] = checksum(content)
    path = write_json(tmp_path / "sent.json", content)
    with pytest.raises(StudyError, match=rf"sent\.json: .*{message}"):
        read_ratings([path], key)


def test_an_edited_file_and_two_files_of_a_reader_are_refused(study: Path, tmp_path: Path) -> None:
    key = read_key(study)
    good = write_json(tmp_path / "good.json", always(key, 0, [1, 2]))
    same = write_json(tmp_path / "same.json", always(key, 0, [2, 1]))
    content = always(key, 1, [1, 2])
    _edited(content)
    edited = write_json(tmp_path / "edited.json", content)
    with pytest.raises(StudyError) as caught:
        read_ratings([good, edited, same, tmp_path / "missing.json", tmp_path], key)
    text = str(caught.value)
    assert "4 unusable file(s)" in text
    assert "edited.json: it was edited or damaged" in text
    assert "same.json: it has the ratings of reader 1" in text
    assert "missing.json" in text and "not a regular file" in text


@pytest.mark.parametrize("text", ["", "[1]", "{" * 10_000, "\x00", '{"kind": 1e999}', "1" * 5000])
def test_what_is_not_ratings_is_refused(study: Path, tmp_path: Path, text: str) -> None:
    path = tmp_path / "sent.json"
    path.write_text(text)
    with pytest.raises(StudyError, match=r"sent\.json: it is not"):
        read_ratings([path], read_key(study))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(StudyError, match="it is not JSON"):
        read_ratings([path], read_key(study))


def test_a_folder_without_a_usable_key_is_refused(study: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"has no key\.json"):
        read_key(tmp_path)
    content = json.loads((study / "key.json").read_text())
    for spoilt in ("{", "[]", json.dumps({**content, "kind": "x"}), json.dumps({"kind": 1})):
        (tmp_path / "key.json").write_text(spoilt)
        with pytest.raises(StudyError, match=r"key\.json is damaged"):
            read_key(tmp_path)
    with pytest.raises(ConfigError, match="name the readers' files"):
        score_files(ScoreSettings(study=study))


def test_the_command_scores_and_names_bad_files(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_json(tmp_path / "good.json", always(read_key(study), 0, [1, 2]))
    script.main(["score", str(study), f"ratings=[{good}]", f"output={tmp_path / 'results'}"])
    printed = capsys.readouterr().out
    assert "## Agreement" in printed and "1 of 2 readers" in printed
    with pytest.raises(StudyError, match=r"key\.json: it is not a file of ratings"):
        script.main(["score", str(study), f"ratings=[{study / 'key.json'}]"])
    for words in (["rate"], ["score"], ["score", f"study={study}"]):
        with pytest.raises(ConfigError, match="the first word is make, or score"):
            script.main(words)
