"""The banding metrics on pairs with streaks of known strength, at matrices 96, 128 and 320.

    python -m benchmarks.banding_checks
    python -m benchmarks.banding_checks checks.png      (a picture of the pairs at 128 x 128)

Pairs of reconstructions are made from the phantom's targets: streaks of a known rms are added along
x in one and along y in the other; then changes that are not banding, and changes that hide it.
Means over the low-signal pixels of all slices; time per pair with one thread.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from banding_removal.data.phantom.scan import make_volume
from banding_removal.data.phantom.spec import DEMO, MEDIUM, REAL_SIZE, PhantomSpec
from banding_removal.metrics.banding import banding_of_slice
from banding_removal.metrics.low_signal import low_signal_regions, volume_scale
from banding_removal.metrics.statistics import RegionSummary, summarize
from banding_removal.metrics.streaks import signed_rms_percent, streak_energies
from banding_removal.pictures.page import Row, grey, write_page
from banding_removal.pictures.zoom import low_signal_part

Floats = NDArray[np.floating]
Pair = tuple[Floats, Floats]
Change = Callable[[Floats, float, np.random.Generator], Pair]

SPECS = {
    96: replace(DEMO, slices=8),
    128: replace(MEDIUM, slices=8),
    320: replace(REAL_SIZE, slices=8, coils=6),  # fewer coils than a real knee: faster
}
VOLUMES = 6
BEFORE = 0.01  # rms of the streaks that are then hidden, as a fraction of q


def lines(target: Floats, rms: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Streaks along x, and along y: constant along, white across, each of exactly this rms."""
    along_x = rng.standard_normal((target.shape[0], 1))
    along_y = rng.standard_normal((1, target.shape[1]))
    ones = np.ones(target.shape)
    return (
        ones * along_x * rms / np.sqrt(np.mean(along_x**2)),
        ones * along_y * rms / np.sqrt(np.mean(along_y**2)),
    )


def streaks(rms: float) -> Change:
    """Banding of this rms, as a fraction of q."""

    def change(target: Floats, q: float, rng: np.random.Generator) -> Pair:
        along_x, along_y = lines(target, rms * q, rng)
        return target + along_x, target + along_y

    return change


def unchanged(target: Floats, q: float, rng: np.random.Generator) -> Pair:  # noqa: ARG001
    """The target as both reconstructions."""
    return target, target


def blurred_target(target: Floats, q: float, rng: np.random.Generator) -> Pair:  # noqa: ARG001
    """The target, blurred (1 pixel), as both."""
    image = gaussian_filter(target, 1.0)
    return image, image


def noise(target: Floats, q: float, rng: np.random.Generator) -> Pair:
    """Independent white noise of 2 % of q in each."""
    n_x, n_y = 0.02 * q * rng.standard_normal((2, *target.shape))
    return target + n_x, target + n_y


def dithered(target: Floats, q: float, rng: np.random.Generator) -> Pair:
    """Banding under independent noise of 3 %."""
    r_x, r_y = streaks(BEFORE)(target, q, rng)
    n_x, n_y = 0.03 * q * rng.standard_normal((2, *target.shape))
    return r_x + n_x, r_y + n_y


def blurred(target: Floats, q: float, rng: np.random.Generator) -> Pair:
    """Banding, blurred (0.8 pixels)."""
    r_x, r_y = streaks(BEFORE)(target, q, rng)
    return gaussian_filter(r_x, 0.8), gaussian_filter(r_y, 0.8)


def hatched(target: Floats, q: float, rng: np.random.Generator) -> Pair:
    """Banding, and streaks of the same rms across it."""
    r_x, r_y = streaks(BEFORE)(target, q, rng)
    along_x, along_y = lines(target, BEFORE * q, rng)
    return r_x + along_y, r_y + along_x


CHECKS: dict[str, Change] = {
    **{f"streaks of {100 * rms:g} %": streaks(rms) for rms in (0.002, 0.005, 0.01, 0.02, 0.04)},
    "target": unchanged,
    "target, blurred": blurred_target,
    "target + noise of 2 %": noise,
    f"{100 * BEFORE:g} % + noise of 3 %": dithered,
    f"{100 * BEFORE:g} %, blurred": blurred,
    f"{100 * BEFORE:g} %, cross-hatched": hatched,
}


def measure(targets: Sequence[Floats], change: Change) -> tuple[RegionSummary, float]:
    """The summary of all slices, and milliseconds per pair."""
    rng = np.random.default_rng(0)
    results, seconds = [], 0.0
    for volume, target in enumerate(targets):
        q = volume_scale(target)
        for index, image in enumerate(target):
            r_x, r_y = change(image, q, rng)
            start = time.perf_counter()
            item = banding_of_slice(r_x, r_y, image, scale=q, volume=f"{volume}", slice_index=index)
            seconds += time.perf_counter() - start
            results.append(item)
    return summarize(results).low_signal, 1000 * seconds / len(results)


def print_anatomy(spec: PhantomSpec, targets: Sequence[Floats]) -> None:
    """Print how much noise-free anatomy is left in the streak energies; the pair cancels it."""
    pixels, along_x, along_y = [], [], []
    for seed, target in enumerate(targets):
        clean = make_volume(replace(spec, noise=(1e-9, 1e-9)), seed).target.astype(np.float64)
        q = volume_scale(target)
        for image, reference in zip(clean[1:-1], target[1:-1], strict=True):  # anatomy alone
            item = streak_energies({"clean": image}, reference, q)
            energy = item.low_signal.energies["clean"]
            pixels.append(item.low_signal.pixels / target[0].size)
            along_x.append(energy.h)
            along_y.append(energy.v)
    print(
        f"  low-signal pixels: {np.mean(pixels):.0%} of the image; noise-free anatomy in them: "
        f"{signed_rms_percent(float(np.mean(along_x))):.2f} % of q along x, "
        f"{signed_rms_percent(float(np.mean(along_y))):.2f} % along y"
    )


def draw(path: Path) -> None:
    """Write each pair of one slice, its low signal enlarged and its metrics below, as PNG."""
    rng = np.random.default_rng(0)
    volume = make_volume(SPECS[128], 3).target.astype(np.float64)
    q, target = volume_scale(volume), volume[len(volume) // 2]
    part = low_signal_part(torch.from_numpy(target), q)
    regions = low_signal_regions(torch.from_numpy(target), q)
    measured = regions.anatomy.float() + 0.4 * regions.background.float()
    where = {
        "target": grey(torch.from_numpy(target), 0, q),
        "measured (white: anatomy)": grey(measured, 0, 1),
    }
    rows: list[Row] = [Row(where)]
    names = [name for name in CHECKS if name not in ("streaks of 0.2 %", "streaks of 4 %")]
    for together in (names[:3], names[3:6], names[6:]):
        zooms, captions = {}, []
        for name in together:
            r_x, r_y = CHECKS[name](target, q, rng)
            region = banding_of_slice(r_x, r_y, target, scale=q).low_signal
            zooms[f"{name}: along x"] = grey(torch.from_numpy(r_x)[part], 0, 0.3 * q)
            zooms["along y".ljust(7 + len(zooms))] = grey(torch.from_numpy(r_y)[part], 0, 0.3 * q)
            captions.append(
                f"{name}: B {region.contribution:.2f} dB, "
                f"signed excess {region.signed_excess:.2f} %, "
                f"along {region.along:.1f}, across {region.across:.1f} dB"
            )
        rows.append(Row(zooms, "   |   ".join(captions)))
    write_page(path, rows, ["Pairs made from one target of the phantom; 0.3 q is white."])


def main(words: Sequence[str]) -> None:
    """Print one table for each matrix, or write the picture."""
    torch.set_num_threads(1)
    if words:
        draw(Path(words[0]))
        return
    for size, spec in SPECS.items():
        targets = [make_volume(spec, seed).target.astype(np.float64) for seed in range(VOLUMES)]
        print(f"\n{size} x {size}, {VOLUMES} volumes of {spec.slices} slices")
        print_anatomy(spec, targets)
        print(
            f"  {'':22} {'B dB':>6} {'95 % interval':>15} {'signed excess %':>16} "
            f"{'along':>6} {'across':>6} {'AUC':>5} {'ms':>6}"
        )
        for name, change in CHECKS.items():
            found, milliseconds = measure(targets, change)
            b = found.contribution
            print(
                f"  {name:22} {b.value:6.2f} {b.low:7.2f} {b.high:7.2f} "
                f"{found.signed_excess.value:16.2f} "
                f"{found.along.value:6.2f} {found.across.value:6.2f} {found.auc.value:5.2f} "
                f"{milliseconds:6.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
