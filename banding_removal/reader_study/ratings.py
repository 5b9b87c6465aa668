"""The files that readers send back. They are untrusted: everything is checked."""

import json
import reprlib
import stat
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from banding_removal.errors import StudyError
from banding_removal.reader_study.blinding import Reader
from banding_removal.reader_study.key import Key
from banding_removal.reader_study.page import FORMAT, RATINGS_KIND
from banding_removal.reader_study.settings import BEST_SCORE

Floats = NDArray[np.float64]
MAX_BYTES = 10_000_000  # a study of a thousand cases has less than a tenth of it


@dataclass(frozen=True, kw_only=True, eq=False)
class Ratings:
    """All ratings, unblinded."""

    readers: tuple[str, ...]
    first: dict[str, Floats]  # by criterion, (reader, case, set)
    again: dict[str, Floats]  # of repeated cases, the second ratings; NaN elsewhere
    seconds: Floats  # that each reader took for all cases, (reader,)


def read_ratings(paths: Sequence[Path], key: Key) -> Ratings:
    """Read the files, check them against the key, and put the sets in their places.

    Raises:
        StudyError: files cannot be used; all are named.
    """
    problems: list[str] = []
    contents: list[tuple[Reader, dict[str, Any]]] = []
    file_of: dict[str, Path] = {}
    for path in paths:
        try:
            reader, content = _read(path.expanduser(), key)
            if reader.name in file_of:
                raise ValueError(
                    f"it has the ratings of {reader.name}, as {file_of[reader.name]}: name one "
                    "file for each reader"
                )
        except (OSError, ValueError) as error:
            problems.append(f"  {path}: {error}")
            continue
        file_of[reader.name] = path
        contents.append((reader, content))
    if problems:
        lines = "\n".join(problems)
        raise StudyError(f"{len(problems)} unusable file(s) of ratings:\n{lines}")
    shape = (len(contents), len(key.cases), len(key.sets))
    first = {criterion: np.full(shape, np.nan) for criterion in key.criteria}
    again = {criterion: np.full(shape, np.nan) for criterion in key.criteria}
    for number, (reader, content) in enumerate(contents):
        views = {view.id: view for view in reader.views}
        for item in content["ratings"]:
            view = views[item["id"]]
            for criterion in key.criteria:
                table = (again if view.repeat else first)[criterion]
                table[number, view.case, list(view.sets)] = item["values"][criterion]
    return Ratings(
        readers=tuple(reader.name for reader, _ in contents),
        first=first,
        again=again,
        seconds=np.array([sum(i["seconds"] for i in c["ratings"]) for _, c in contents]),
    )


def _read(path: Path, key: Key) -> tuple[Reader, dict[str, Any]]:
    """The reader and the content of a file; ValueError says what is wrong with it."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a regular file")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("kind") != RATINGS_KIND:
        raise ValueError("it is not a file of ratings")
    if content.get("format") != FORMAT:
        raise ValueError(f"its format is {reprlib.repr(content.get('format'))}, not {FORMAT}")
    if content.get("study") != key.study:
        raise ValueError("it belongs to another study")
    readers = [reader for reader in key.readers if reader.token == content.get("reader")]
    if not readers:
        raise ValueError("its reader is not one of this study")
    ratings = content.get("ratings")
    if not isinstance(ratings, list) or not all(isinstance(item, dict) for item in ratings):
        raise ValueError("it has no list of ratings")
    if content.get("checksum") != checksum(content):
        raise ValueError("it was edited or damaged (its checksum is wrong); ask for it again")
    _check_cases(ratings, readers[0])
    for place, item in enumerate(ratings):
        _check_rating(item, f"rating {place + 1}", key)
    return readers[0], content


def checksum(content: dict[str, Any]) -> str:
    """CRC-32 of a file's study, reader and ratings, which finds accidents, not forgery."""
    parts = [content["study"], content["reader"], content["ratings"]]
    text = json.dumps(parts, separators=(",", ":"), ensure_ascii=False)
    return f"{zlib.crc32(text.encode(errors='replace')):08x}"


def _check_cases(ratings: list[dict[str, Any]], reader: Reader) -> None:
    found = Counter(repr(item.get("id")) for item in ratings)
    expected = {repr(view.id) for view in reader.views}
    doubled = sum(count > 1 for count in found.values())
    for number, what in (
        (len(found.keys() - expected), "unknown"),
        (doubled, "doubled"),
        (len(expected - found.keys()), "missing"),
    ):
        if number:
            raise ValueError(f"{number} of {len(expected)} cases are {what}")


def _check_rating(item: dict[str, Any], where: str, key: Key) -> None:
    highest = len(key.sets) if key.rating == "rank" else BEST_SCORE
    seconds = item.get("seconds")
    if type(seconds) is not int or not 0 <= seconds < 1e7:
        raise ValueError(f"{where}: seconds is {reprlib.repr(seconds)}")
    values = item.get("values")
    if not isinstance(values, dict) or set(values) != set(key.criteria):
        raise ValueError(f"{where} does not have a value for each of {', '.join(key.criteria)}")
    for criterion, numbers in values.items():
        if (
            not isinstance(numbers, list)
            or len(numbers) != len(key.sets)
            or not all(type(number) is int and 1 <= number <= highest for number in numbers)
        ):
            raise ValueError(
                f"{where}: {criterion} is {reprlib.repr(numbers)}; expected {len(key.sets)} whole "
                f"numbers from 1 to {highest}"
            )
