"""Predictors and simple remedies side by side: one picture, one table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from banding_removal.config.bounds import bounded
from banding_removal.config.settings import REPOSITORY
from banding_removal.evaluation.evaluate import Evaluation, evaluate
from banding_removal.evaluation.image_sets import ImageSet, reference_volumes
from banding_removal.evaluation.measure import cropped
from banding_removal.evaluation.remedies import blurred_across, dithered
from banding_removal.evaluation.sets_settings import SetsSettings, choose_volumes, load_sets
from banding_removal.evaluation.summary import Metric
from banding_removal.evaluation.table import markdown
from banding_removal.files import atomic_write
from banding_removal.metrics.banding import BandingOfSlice
from banding_removal.metrics.low_signal import low_signal_regions
from banding_removal.metrics.slice_pair import SlicePair
from banding_removal.pictures.page import Pixels, Row, colour_bar, grey, texture, write_page
from banding_removal.pictures.zoom import low_signal_part
from banding_removal.processes.threads import set_threads
from banding_removal.runs.build import choose_device

PROBE_STEPS = 300
# of the table: title, metric, format
OVERALL = (
    ("SSIM", "ssim", ".4f"),
    ("NMSE", "nmse", ".4f"),
    ("banding (dB)", "low_signal.contribution", ".2f"),
    ("signed excess (%)", "low_signal.signed_excess", ".2f"),
    ("along (dB)", "low_signal.along", ".1f"),
    ("across (dB)", "low_signal.across", ".1f"),
)
MOST_ERROR = 0.1  # black and white of the error, as a fraction of the volume's largest target value


@dataclass(frozen=True, kw_only=True)
class CompareSettings(SetsSettings):
    """What to compare, and how to show it."""

    most_volumes: int | None = bounded(8, above=0)  # spread; all images are kept in memory
    remedies: bool = True  # add the first set dithered, and blurred across its streaks
    dither: float = bounded(0.04, above=0)  # noise where the signal is q, as a fraction of q
    blur: float = bounded(0.5, above=0)  # pixels, standard deviation
    rows: int = bounded(4, above=0)  # slices in the picture, four rows each
    window: float = bounded(0.25, above=0)  # white of the zooms, of the volume's largest value
    probe: bool = False  # train classifiers: about two minutes per set
    output: Path = REPOSITORY / "logs" / "comparison"  # folder for comparison.png and comparison.md


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The results, and where they are written."""

    evaluation: Evaluation
    picture: Path
    table: Path


def compare(settings: CompareSettings) -> Comparison:
    """Reconstruct, evaluate, and write the picture and the table.

    Raises:
        ConfigError: no set is named, a path is missing, or filters leave nothing.
        CheckpointError: a checkpoint cannot be used.
        VolumeError: volumes or reconstructions that cannot be used; all are named.
        FileNotFoundError: the folder of volumes is missing or empty.
        FloatingPointError: a reconstruction is not finite.
    """
    device = choose_device(settings.device)
    files = choose_volumes(settings)
    set_threads(files)
    count = min(len(files), settings.most_volumes or len(files))
    files = [files[i * len(files) // count] for i in range(count)]
    references = reference_volumes(files)
    sets = [
        replace(found, slices=[cropped(pair, found.name) for pair in found.slices])
        for found in load_sets(settings, files, device)
    ]
    if settings.remedies:
        sets += _remedies(sets[0], settings)
    evaluation = evaluate(
        sets,
        references,
        probe_steps=PROBE_STEPS if settings.probe else None,
        device=device,
        seed=settings.seed,
    )
    picture, table = (settings.output / f"comparison.{kind}" for kind in ("png", "md"))
    rows = _rows(evaluation, [list(one.slices) for one in sets], settings)
    header = (
        f"Zooms: low signal, white at {settings.window:.0%} of the volume's maximum. Banding is "
        "streaks along x in the first row of a slice and along y in the second one. Texture: the "
        "image minus its blur, over the local noise level; bright tissue is faded out."
    )
    write_page(picture, rows, [header], _table(evaluation))
    atomic_write(table, markdown(evaluation).encode())
    return Comparison(evaluation=evaluation, picture=picture, table=table)


def _remedies(before: ImageSet, settings: CompareSettings) -> list[ImageSet]:
    """A set after each of the simple remedies."""
    slices = list(before.slices)
    return [
        ImageSet(
            name=f"{before.name}, dithered",
            origin=f"{before.origin}, noise of {settings.dither:g} q",
            slices=[_dithered(pair, settings, number) for number, pair in enumerate(slices)],
        ),
        ImageSet(
            name=f"{before.name}, blurred",
            origin=f"{before.origin}, blurred across the streaks, {settings.blur:g} pixels",
            slices=[_blurred(pair, settings.blur) for pair in slices],
        ),
    ]


def _dithered(pair: SlicePair, settings: CompareSettings, number: int) -> SlicePair:
    def noisy(image: Tensor, axis: int) -> Tensor:
        seed = (settings.seed, number, axis)
        return dithered(image, pair.scale, settings.dither, seed)

    along_y = None if pair.along_y is None else noisy(pair.along_y, 1)
    return replace(pair, along_x=noisy(pair.along_x, 0), along_y=along_y)


def _blurred(pair: SlicePair, sigma: float) -> SlicePair:
    along_x = blurred_across(pair.along_x, sigma, phase_encode_axis=1)
    along_y = pair.along_y
    if along_y is not None:
        along_y = blurred_across(along_y, sigma, phase_encode_axis=0)
    return replace(pair, along_x=along_x, along_y=along_y)


def _table(evaluation: Evaluation) -> list[list[str]]:
    """The metrics of each set with their 95 % intervals."""
    lines = [["95 % intervals over volumes", *(title for title, *_ in OVERALL)]]
    for result in evaluation.sets:
        metrics = [(result.overall.metrics[name], form) for _, name, form in OVERALL]
        lines.append([result.name, *(_in_words(metric, form) for metric, form in metrics)])
    return lines


def _in_words(metric: Metric, form: str) -> str:
    if math.isnan(metric.value):
        return "not measurable"
    if math.isnan(metric.low):
        return f"{metric.value:{form}}"  # of one volume, there is no interval
    return f"{metric.value:{form}}  [{metric.low:{form}}, {metric.high:{form}}]"


def _rows(
    evaluation: Evaluation, sets: Sequence[Sequence[SlicePair]], settings: CompareSettings
) -> list[Row]:
    """Four rows per slice: phase encoding along x, along y, and texture and error along x."""
    bandings = [
        {
            (item.volume, item.slice_index): item.banding
            for part in one.volumes
            for item in part.slices
        }
        for one in evaluation.sets
    ]
    names = [one.name for one in evaluation.sets]
    rows = []
    for index in _slices_to_show(sets[0], settings.rows):
        pairs = {name: slices[index] for name, slices in zip(names, sets, strict=True)}
        first = sets[0][index]
        contributions = {
            name: _of_slice(banding[first.name, first.slice_index])
            for name, banding in zip(names, bandings, strict=True)
        }
        along_x, along_y, textures, error = _pictures(pairs, contributions, settings.window)
        title = f"{first.name} slice {first.slice_index}"
        rows += [
            Row(along_x, f"{title}: phase encode along x", smooth=True),
            Row(along_y, f"{title}: phase encode along y", smooth=True),
            Row(textures, f"{title}: texture, phase encode along x", smooth=True),
            Row(error, f"{title}: reconstruction - target, phase encode along x", smooth=True),
        ]
    return rows


def _of_slice(banding: BandingOfSlice | None) -> str:
    """B of a slice, for a title."""
    if banding is None or banding.low_signal.reason:
        return "B not measurable"
    return f"B {banding.low_signal.contribution:.2f} dB"


def _pictures(
    pairs: dict[str, SlicePair], contributions: dict[str, str], window: float
) -> tuple[dict[str, Pixels], ...]:
    """A slice of all sets, low signal enlarged: along x, along y, texture and error of along x."""
    first = next(iter(pairs.values()))
    target = first.target
    part = low_signal_part(target, first.scale)
    white = first.data_range * window
    regions = low_signal_regions(target, first.scale)
    measured = regions.anatomy.float() + 0.4 * regions.background.float()
    zoom = {"target, zoom": grey(target[part], 0, white)}
    along_x = {"target": grey(target, 0, float(target.max()) or 1.0), **zoom}
    along_y = {"measured (white: anatomy)": grey(measured, 0, 1.0), **zoom}
    textures = {
        "target, texture": texture(target),
        "target, texture, zoom": texture(target)[part],
    }
    limit = MOST_ERROR * (first.data_range or 1.0)
    labels = (f"-{MOST_ERROR:.0%} of maximum", "0", f"+{MOST_ERROR:.0%} of maximum")
    error = {"error": colour_bar(*labels, column=along_x["target"]), **zoom}
    for name, pair in pairs.items():
        along_x[f"{name}, x"] = grey(pair.along_x[part], 0, white)
        if pair.along_y is not None:
            along_y[f"{name}, y: {contributions[name]}"] = grey(pair.along_y[part], 0, white)
        textures[f"{name}, texture"] = texture(pair.along_x)[part]
        error[f"{name}, error"] = grey((pair.along_x - target)[part], -limit, 2 * limit)
    return along_x, along_y, textures, error


def _slices_to_show(slices: Sequence[SlicePair], count: int) -> list[int]:
    """Positions of the slices with the most low-signal anatomy, one per volume, in their order."""
    best: dict[str, tuple[int, int]] = {}
    for index, pair in enumerate(slices):
        anatomy = int(low_signal_regions(pair.target, pair.scale).anatomy.sum())
        best[pair.name] = max(best.get(pair.name, (-1, index)), (anatomy, index))
    return sorted(index for _, index in sorted(best.values(), reverse=True)[:count])
