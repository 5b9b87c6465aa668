"""Small reader studies: volumes, sets of images with known faults, and readers' answers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from banding_removal.evaluation.image_files import KEY
from banding_removal.reader_study.key import Key
from banding_removal.reader_study.page import FORMAT, RATINGS_KIND
from banding_removal.reader_study.ratings import checksum
from banding_removal.reader_study.settings import MakeSettings
from tests.support.fastmri_files import write_volume

SLICES = 3
SIZE = 24


def settings_of(folder: Path, **fields: Any) -> MakeSettings:
    settings = MakeSettings(
        sets={"pretrained": folder / "a", "trained $x$": folder / "b"},
        volumes=folder / "volumes",
        output=folder / "study",
        logs=folder / "logs",
        cases=5,
        readers=2,
        repeats=0.4,
        low_anatomy=0.2,
        device="cpu",
    )
    return replace(settings, **fields)


def write_sets(folder: Path, names: tuple[str, ...] = ("a", "b"), volumes: int = 2) -> Path:
    """Volumes in `volumes`, and for each set a folder with their targets, set by set brighter.

    The first pixel of an image is the number of its set, in hundredths of the maximum; the last
    slice of each volume has nothing but air.
    """
    for volume in range(volumes):
        path = write_volume(folder / "volumes" / f"v{volume}.h5", slices=SLICES, seed=volume)
        with h5py.File(path, "r+") as file:
            file["reconstruction_rss"][-1] *= 0.05
            target = file["reconstruction_rss"][()]
        for number, name in enumerate(names):
            images = target.copy()
            images[:, 0, 0] = target.max() * (number + 1) / 100
            for orientation in "xy":
                part = folder / name / orientation / path.name
                part.parent.mkdir(parents=True, exist_ok=True)
                with h5py.File(part, "w") as file:
                    file[KEY] = images
    return folder


def answers(key: Key, reader: int, values: dict[tuple[int, str], list[int]]) -> dict[str, Any]:
    """What a reader sends back.

    Args:
        key: of the study.
        reader: position.
        values: (position of the view, criterion) -> ratings of the sets, in the key's order.
    """
    page = key.readers[reader]
    ratings = [
        {
            "id": view.id,
            "seconds": 10,
            "values": {
                criterion: [values[number, criterion][one] for one in view.sets]
                for criterion in key.criteria
            },
        }
        for number, view in enumerate(page.views)
    ]
    content = {
        "kind": RATINGS_KIND,
        "format": FORMAT,
        "study": key.study,
        "reader": page.token,
        "ratings": ratings,
    }
    return content | {"checksum": checksum(content)}


def simulated_values(
    key: Key, quality: np.ndarray, noise: float, rng: np.random.Generator
) -> np.ndarray:
    """Ranks (reader, case, criterion, set) of readers who see the quality of each set with noise.

    Every volume has a disturbance of its own, which all readers see.
    """
    shape = (len(key.readers), len(key.cases), len(key.criteria), len(key.sets))
    volumes = sorted({case.volume for case in key.cases})
    of_volume = rng.standard_normal((len(volumes), *shape[2:])) * noise
    seen = quality + of_volume[[volumes.index(case.volume) for case in key.cases]]
    seen = seen + noise * rng.standard_normal(shape)
    return np.argsort(np.argsort(-seen, axis=-1), axis=-1) + 1.0


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path
