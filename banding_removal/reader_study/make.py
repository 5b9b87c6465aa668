"""Make a study: one page for each reader, and the key."""

import math
from collections.abc import Sequence
from pathlib import Path

from banding_removal.config.overrides import plain
from banding_removal.data.volume import Volume, VolumeError
from banding_removal.errors import ConfigError
from banding_removal.evaluation.sets_settings import choose_volumes, load_sets
from banding_removal.files import atomic_write
from banding_removal.reader_study.blinding import arrange, new_token
from banding_removal.reader_study.cases import choose_cases
from banding_removal.reader_study.images import CaseImages, read_cases
from banding_removal.reader_study.key import KEY_NAME, Key, write_key
from banding_removal.reader_study.page import CRITERIA, render_page
from banding_removal.reader_study.settings import FEWEST_SETS, MOST_SETS, MakeSettings
from banding_removal.reader_study.statistics import comparisons_of, fewest_volumes
from banding_removal.runs.build import choose_device

MOST_BYTES = 400_000_000  # of a page: browsers refuse longer texts


def make_study(settings: MakeSettings) -> str:
    """Reconstruct the cases and write the pages and the key; returns what was made, in words.

    Raises:
        ConfigError: fewer than two or more than four sets, too few slices, a folder that is not
            empty, sets that do not suit.
        CheckpointError: a checkpoint cannot be used.
        VolumeError: volumes or reconstructions cannot be used; all are named.
        FileNotFoundError: the folder of volumes is missing or empty.
        FloatingPointError: a reconstruction is not finite.
    """
    _check(settings)
    device = choose_device(settings.device)
    files = choose_volumes(settings)
    without = [f"{file.path}: has no target image" for file in files if file.target_key is None]
    if without:
        raise VolumeError.of_all(without)
    cases = choose_cases(
        files,
        slice_range=settings.slices,
        count=settings.cases,
        low_anatomy=settings.low_anatomy,
        both_orientations=settings.orientations == "both",
        seed=settings.seed,
    )
    repeats = round(settings.repeats * len(cases))
    shown = [file for file in files if file.name in {case.volume for case in cases}]
    sets = load_sets(settings, shown, device, only={case.place for case in cases})
    _check_size(shown, len(cases), len(sets) * (len(cases) + repeats))
    settings.output.mkdir(parents=True, exist_ok=True)
    images = read_cases(sets, cases)
    key = Key(
        study=new_token(),
        rating=settings.rating,
        criteria=tuple(CRITERIA),
        sets=tuple(settings.sets),
        cases=tuple(cases),
        readers=tuple(
            arrange(len(cases), len(sets), repeats, f"reader {number + 1}")
            for number in range(settings.readers)
        ),
    )
    pages = _write(settings.output, key, images, settings)
    return _summary(settings.output, key, pages, repeats)


def _check(settings: MakeSettings) -> None:
    """Check the number of sets and the folder, in which a running study would lose its key."""
    if not FEWEST_SETS <= len(settings.sets) <= MOST_SETS:
        raise ConfigError(
            f"name {FEWEST_SETS} to {MOST_SETS} sets, 'sets={{a: logs/pretrain, b: logs/train}}'; "
            f"got {len(settings.sets)}"
        )
    if settings.output.exists() and (
        not settings.output.is_dir() or any(settings.output.iterdir())
    ):
        raise ConfigError(f"{settings.output} is not empty; choose a new folder as output")


def _check_size(files: Sequence[Volume], cases: int, images: int) -> None:
    """Check that browsers will open the pages, before hours of work."""
    pixels = max(math.prod(file.target_size or ()) for file in files)
    estimate = images * pixels * 2 * 4 // 3  # 16 bits; 4 characters of base64 for 3 bytes
    if estimate > MOST_BYTES:
        raise ConfigError(
            f"a page would have {estimate / 1e6:.0f} MB, more than browsers open: "
            f"use at most cases={cases * MOST_BYTES // estimate}"
        )


def _write(
    folder: Path, key: Key, images: list[CaseImages], settings: MakeSettings
) -> list[tuple[Path, int]]:
    """Write everything; returns the pages with their sizes in bytes."""
    write_key(folder / KEY_NAME, key, plain(settings))
    pages = []
    for reader in key.readers:
        html = render_page(
            key.study, reader, images, sets=len(key.sets), rating=key.rating
        ).encode()
        path = folder / f"{reader.name.replace(' ', '_')}.html"
        atomic_write(path, html)
        pages.append((path, len(html)))
    return pages


def _summary(folder: Path, key: Key, pages: list[tuple[Path, int]], repeats: int) -> str:
    cases = key.cases
    volumes = len({case.volume for case in cases})
    along_y = sum(case.orientation == "y" for case in cases)
    mostly_air = sum(case.low_anatomy for case in cases)
    lines = [
        f"{len(cases)} cases from {volumes} volumes, {repeats} of them shown twice: "
        f"{len(cases) - along_y} with phase encoding along x, {along_y} along y; "
        f"{mostly_air} mostly air",
        *(f"  {path} ({size / 1e6:.1f} MB): send it to one reader" for path, size in pages),
        f"  {folder / KEY_NAME}: unblinds the study; do not send it",
    ]
    fewest = fewest_volumes(comparisons_of(len(key.sets), len(key.criteria)))
    if volumes < fewest:
        lines.append(
            f"Warning: slices of a volume count as one in the tests. With fewer than {fewest} "
            f"volumes, no difference can be significant; there are {volumes}."
        )
    return "\n".join(lines)
