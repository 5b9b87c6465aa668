"""False alarms and cost of the checks that are made when volumes are indexed.

    python -m benchmarks.index_checks
    python -m benchmarks.index_checks volumes=1000

Makes healthy phantom volumes of many sizes, contrasts, noise levels and paddings, indexes them, and
prints how many get a warning or are refused: it must be none. Then it times the checks on a volume
of the paper's size, in the page cache.
"""

import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from banding_removal.command_line import user_errors
from banding_removal.config.overrides import from_words
from banding_removal.data.index import read_volumes
from banding_removal.data.phantom.files import write_volume
from banding_removal.data.phantom.scan import PhantomVolume, make_volume
from banding_removal.data.phantom.spec import REAL_SIZE, PhantomSpec
from banding_removal.data.volume import VolumeError, read_volume

REPEATS = 15


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """Settings of the benchmark."""

    volumes: int = 200
    seed: int = 0


def random_spec(rng: np.random.Generator) -> PhantomSpec:
    """A healthy volume of any size, also with readout oversampling and a rectangular target."""
    h, w = (int(rng.integers(16, 49)) * 2 + int(rng.integers(2)) for _ in range(2))
    height, width = h * int(rng.integers(1, 3)), w + int(rng.integers(0, 20))
    left, right = (int(rng.integers(0, width // 5)) for _ in range(2))
    low = float(np.exp(rng.uniform(np.log(0.005), np.log(0.3))))
    return PhantomSpec(
        kspace_size=(height, width),
        target_size=(h, min(w, width)),
        coils=int(rng.integers(1, 9)),
        acquired=(left, width - right),
        slices=int(rng.integers(3, 9)),
        noise=(low, 2 * low),
        fat_suppressed_share=0.5,
        fov_mm=float(rng.uniform(100, 250)),
        signal_spread=float(rng.uniform(0.05, 0.5)),
    )


def false_alarms(settings: CheckSettings, folder: Path) -> Counter[str]:
    """Warnings by kind and refusals by reason, of healthy volumes."""
    rng = np.random.default_rng(settings.seed)
    paths = []
    for number in tqdm(range(settings.volumes), desc="phantom volumes", unit="volume"):
        paths.append(folder / f"v{number}.h5")
        write_volume(paths[-1], make_volume(random_spec(rng), number))
    alarms: Counter[str] = Counter()
    for volume in read_volumes(paths):
        if isinstance(volume, VolumeError):
            alarms[f"refused: {volume}"] += 1
        else:
            alarms.update(f"warning {kind}: {volume.name}: {text}" for kind, text in volume.notes)
    return alarms


def real_size_volume(path: Path) -> None:
    """A volume of the paper's size, with as many slices as a knee; few of them are computed."""
    made: PhantomVolume = make_volume(replace(REAL_SIZE, slices=3), 0)
    write_volume(path, made)
    with h5py.File(path, "r+") as file:
        for key in ("kspace", "reconstruction_rss"):
            slices = np.repeat(file[key][1:2], 35, axis=0)
            del file[key]
            file[key] = slices


def milliseconds(function: Callable[[], object]) -> float:
    """Median CPU time of a call; other work on the machine does not count."""
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        function()
        times.append(1000 * (time.process_time() - start))
    return statistics.median(times)


def main(settings: CheckSettings) -> None:
    """Print the counts and the times."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alarms = false_alarms(settings, folder)
        print(f"{sum(alarms.values())} warnings or refusals in {settings.volumes} healthy volumes")
        for alarm in sorted(alarms):
            print(f"  {alarm}")
        path = folder / "real.h5"
        real_size_volume(path)
        duration = milliseconds(lambda: read_volume(path))
        print(f"indexing 35 slices of 15 x 640 x 368: {duration:.0f} ms of CPU time")


if __name__ == "__main__":
    with user_errors():
        main(from_words(CheckSettings(), sys.argv[1:]))
