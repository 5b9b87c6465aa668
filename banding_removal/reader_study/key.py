"""The key of a study: which set each reader saw where. It stays with whoever runs the study."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from banding_removal.errors import StudyError
from banding_removal.files import atomic_write
from banding_removal.reader_study.blinding import Reader, View
from banding_removal.reader_study.cases import Case
from banding_removal.reader_study.settings import Rating

KEY_NAME = "key.json"
KEY_KIND = "key of a banding_removal reader study"


@dataclass(frozen=True, kw_only=True)
class Key:
    """A study as it was made."""

    study: str  # token
    rating: Rating
    criteria: tuple[str, ...]
    sets: tuple[str, ...]
    cases: tuple[Case, ...]
    readers: tuple[Reader, ...]


def write_key(path: Path, key: Key, settings: dict[str, Any]) -> None:
    """Write the key, with the settings that the study was made with.

    Raises:
        OSError: it cannot be written.
    """
    content = {"kind": KEY_KIND, "format": 1, "settings": settings, **asdict(key)}
    atomic_write(path, json.dumps(content, indent=1).encode())


def read_key(folder: Path) -> Key:
    """The key of the study in a folder.

    Raises:
        StudyError: the folder has no key, or a damaged one.
    """
    path = folder / KEY_NAME
    if not path.is_file():
        raise StudyError(f"{folder} is not the folder of a reader study: it has no {KEY_NAME}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["kind"] != KEY_KIND or content["format"] != 1:
            raise ValueError("it is another kind of file")
        readers = tuple(
            Reader(
                name=reader["name"],
                token=reader["token"],
                views=tuple(
                    View(**{**view, "sets": tuple(view["sets"])}) for view in reader["views"]
                ),
            )
            for reader in content["readers"]
        )
        return Key(
            study=content["study"],
            rating=content["rating"],
            criteria=tuple(content["criteria"]),
            sets=tuple(content["sets"]),
            cases=tuple(Case(**case) for case in content["cases"]),
            readers=readers,
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StudyError(f"{path} is damaged ({error!r}); restore it from a copy") from error
