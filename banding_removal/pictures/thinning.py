"""Thins out the slices that a run has stored, when they exceed their budget."""

import json
import logging
import zipfile
from collections.abc import Collection
from pathlib import Path

from banding_removal.pictures.slice_files import DAMAGED, epoch_files, read_file, write_file

log = logging.getLogger(__name__)


def thin_out(kept: Path, target: Path, slices: int, budget: int) -> None:
    """Keep all files below the budget.

    The first and the last epoch stay as they are. All others first lose slices, the oldest ones
    first, until they have the first and the middle one, then the middle one alone. Then they go
    where they lie densest; at the beginning of a run, they end up about five times as far apart as
    at its end.

    Args:
        kept: the folder of the files.
        target: the file of the targets, which stays.
        slices: how many an epoch has before it is thinned out.
        budget: bytes of all files.
    """
    files = epoch_files(kept)
    size = target.stat().st_size + sum(path.stat().st_size for path in files.values())
    for positions in ({0, slices // 2}, {slices // 2}):
        for path in [*files.values()][1:-1]:
            if size <= budget:
                return
            size -= _reduce(path, positions)
    files = epoch_files(kept)
    while size > budget and len(files) > 2:
        epochs = [*files]
        gaps = {
            here: (after - before) / (1.25 * epochs[-1] - here)
            for before, here, after in zip(epochs, epochs[1:], epochs[2:], strict=False)
        }
        path = files.pop(min(gaps, key=lambda number: gaps[number]))
        size -= path.stat().st_size
        path.unlink()


def _reduce(path: Path, positions: Collection[int]) -> int:
    """Leave these slices of an epoch, and nothing of a damaged file; returns the bytes saved."""
    before = path.stat().st_size if path.exists() else 0
    try:
        with zipfile.ZipFile(path) as content:
            names = [name.removesuffix(".npy") for name in content.namelist()]
        if {int(name[2:]) for name in names if name != "about"} <= {*positions}:
            return 0
        metrics, images = read_file(path)
    except DAMAGED as error:
        log.warning("%s is damaged and removed: %s", path, error)
        path.unlink(missing_ok=True)
        return before
    left = {key: image for key, image in images.items() if key[1] in positions}
    write_file(path, json.dumps(metrics), left)
    return before - path.stat().st_size
