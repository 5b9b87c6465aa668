"""Predictors and the simple remedies side by side: one picture, one table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from banding_removal.config.settings import REPOSITORY
from banding_removal.data.filters import VolumeFilter
from banding_removal.errors import ConfigError
from banding_removal.evaluation.evaluate import Evaluation, SetResult, evaluate
from banding_removal.evaluation.image_sets import (
    ImageSet,
    ReferenceVolume,
    SliceImages,
    path_set,
    reference_volumes,
)
from banding_removal.evaluation.measure import cropped
from banding_removal.evaluation.remedies import blurred_across, dithered
from banding_removal.evaluation.settings import choose_volumes
from banding_removal.evaluation.table import markdown
from banding_removal.files import atomic_write
from banding_removal.metrics.low_signal import low_signal_regions
from banding_removal.pictures.validation_grid import Pixels, Row, grey, low_signal_part, write_page
from banding_removal.runs.build import choose_device


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """What to compare."""

    # name: a run's folder or checkpoint, or a folder with reconstructions (x/*.h5, y/*.h5)
    sets: dict[str, Path] = field(default_factory=dict)
    volumes: Path = REPOSITORY / "datasets" / "phantom" / "multicoil_val"  # files with targets
    filter: VolumeFilter = field(default_factory=VolumeFilter)
    most_volumes: int | None = 8  # spread over those there are, since all images are in memory
    slices: tuple[int | None, int | None] = (None, None)  # of each volume, [first, stop)
    remedies: bool = True  # the first set dithered, and blurred across its streaks, too
    dither: float = 0.04  # noise where the signal is q, as a fraction of q
    blur: float = 0.5  # pixels, standard deviation
    rows: int = 4  # slices in the picture
    window: float = 0.25  # white of the zooms, as a fraction of the volume's largest target value
    probe: bool = False  # train classifiers, too: about a minute a set
    output: Path = REPOSITORY / "logs" / "comparison"  # folder for comparison.png and comparison.md
    logs: Path = REPOSITORY / "logs"  # the index of the volumes is kept there
    device: str = "auto"
    seed: int = 0  # of noise, probe, resampling and filter.fraction

    def __post_init__(self) -> None:
        for name in ("dither", "blur", "rows", "window"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")
        if self.most_volumes is not None and self.most_volumes < 1:
            raise ConfigError(f"most_volumes must be positive, got {self.most_volumes}")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was found, and where it is."""

    evaluation: Evaluation
    picture: Path
    table: Path


def compare(settings: CompareSettings) -> Comparison:
    """Reconstruct, judge, and write picture and table.

    Raises:
        ConfigError: no set is named, a path is missing, or filters leave nothing.
        CheckpointError: a checkpoint cannot be used.
        VolumeError: volumes or reconstructions that cannot be used; all are named.
        FileNotFoundError: the folder of volumes is missing or empty.
    """
    if not settings.sets:
        raise ConfigError("name one set or more: 'sets={pretrained: logs/pretrain}'")
    device = choose_device(settings.device)
    files = choose_volumes(settings)
    count = min(len(files), settings.most_volumes or len(files))
    files = [files[i * len(files) // count] for i in range(count)]
    references = reference_volumes(files)
    sets = []
    for name, path in settings.sets.items():
        found = path_set(name, path, files, slice_range=settings.slices, device=device)
        sets.append(replace(found, slices=[cropped(item, name) for item in found.slices]))
    if settings.remedies:
        sets += _remedies(sets[0], references, settings)
    steps = 300 if settings.probe else None
    evaluation = evaluate(sets, references, probe_steps=steps, device=device, seed=settings.seed)
    picture, table = (settings.output / f"comparison.{kind}" for kind in ("png", "md"))
    write_page(picture, *_page(sets, references, evaluation, settings))
    atomic_write(table, markdown(evaluation).encode())
    return Comparison(evaluation=evaluation, picture=picture, table=table)


def _remedies(
    before: ImageSet, references: Sequence[ReferenceVolume], settings: CompareSettings
) -> list[ImageSet]:
    """The images of a set after each of the simple remedies."""
    scales = {volume.name: volume.scale for volume in references}

    def noisy(slices: Sequence[SliceImages]) -> Iterator[SliceImages]:
        for number, item in enumerate(slices):
            images = [
                None
                if image is None
                else dithered(
                    image, scales[item.volume], settings.dither, (settings.seed, number, axis)
                )
                for axis, image in enumerate((item.r_x, item.r_y))
            ]
            assert images[0] is not None
            yield replace(item, r_x=images[0], r_y=images[1])

    def smooth(slices: Sequence[SliceImages]) -> Iterator[SliceImages]:
        for item in slices:
            r_y = item.r_y
            yield replace(
                item,
                r_x=blurred_across(item.r_x, settings.blur, phase_encode_axis=1),
                r_y=None
                if r_y is None
                else blurred_across(r_y, settings.blur, phase_encode_axis=0),
            )

    slices = list(before.slices)
    return [
        ImageSet(
            name=f"{before.name}, dithered",
            origin=f"{before.origin}, noise of {settings.dither:g} q",
            slices=list(noisy(slices)),
        ),
        ImageSet(
            name=f"{before.name}, blurred",
            origin=f"{before.origin}, blurred across the streaks, {settings.blur:g} pixels",
            slices=list(smooth(slices)),
        ),
    ]


def _page(
    sets: Sequence[ImageSet],
    references: Sequence[ReferenceVolume],
    evaluation: Evaluation,
    settings: CompareSettings,
) -> tuple[list[Row], list[str]]:
    """Rows and header: two rows a slice, with phase encoding along x and along y."""
    by_name = {volume.name: volume for volume in references}
    images = [list(one.slices) for one in sets]
    rows: list[Row] = []
    scales = {volume.name: volume.scale for volume in references}
    for index in _chosen(images[0], scales, settings.rows):
        target = images[0][index].target
        volume = by_name[images[0][index].volume]
        part = low_signal_part(target, volume.scale)
        white = volume.data_range * settings.window
        regions = low_signal_regions(target, volume.scale)
        first: dict[str, Pixels] = {
            "target": grey(target, 0, float(target.max()) or 1.0),
            "target, zoom": grey(target[part], 0, white),
        }
        measured = regions.anatomy.float() + 0.4 * regions.background.float()
        second: dict[str, Pixels] = {
            "measured (white: anatomy)": grey(measured, 0, 1.0),
            "target, zoom": first["target, zoom"],
        }
        captions = []
        for one, slices, result in zip(sets, images, evaluation.sets, strict=True):
            item = slices[index]
            first[f"{one.name}, x"] = grey(item.r_x[part], 0, white)
            if item.r_y is not None:
                second[f"{one.name}, y"] = grey(item.r_y[part], 0, white)
            captions.append(f"{one.name}: {_of_slice(result, item)}")
        where = f"{volume.name} slice {images[0][index].slice_index}"
        rows.append((first, f"{where}: phase encode along x"))
        rows.append((second, "phase encode along y.   " + "   |   ".join(captions)))
    header = [
        f"Zooms: low signal, white at {settings.window:.0%} of the volume's maximum. Banding is "
        "streaks along x in the upper row of a slice and along y in the lower one.",
        *(f"{result.name}: {_overall(result)}" for result in evaluation.sets),
    ]
    return rows, header


def _chosen(slices: Sequence[SliceImages], scales: Mapping[str, float], count: int) -> list[int]:
    """Positions of the slices with the most low-signal anatomy, one of a volume, in their order."""
    best: dict[str, tuple[int, int]] = {}
    for index, item in enumerate(slices):
        anatomy = int(low_signal_regions(item.target, scales[item.volume]).anatomy.sum())
        best[item.volume] = max(best.get(item.volume, (-1, index)), (anatomy, index))
    return sorted(index for _, index in sorted(best.values(), reverse=True)[:count])


def _overall(result: SetResult) -> str:
    figures = result.overall.figures
    names = {
        "SSIM": ("ssim", ".4f", ""),
        "NMSE": ("nmse", ".4f", ""),
        "banding": ("low_signal.contribution", ".2f", " dB"),
        "excess": ("low_signal.excess", ".2f", " %"),
        "along": ("low_signal.along", ".1f", " dB"),
        "across": ("low_signal.across", ".1f", " dB"),
    }
    parts = []
    for title, (key, form, unit) in names.items():
        found = figures[key]
        interval = f" [{found.low:{form}}, {found.high:{form}}]"
        parts.append(f"{title} {found.value:{form}}{unit}{interval}")
    return "   ".join(parts)


def _of_slice(result: SetResult, item: SliceImages) -> str:
    """The banding of one slice in words."""
    for volume in result.volumes:
        for found in volume.slices:
            if (found.volume, found.slice_index) == (item.volume, item.slice_index):
                region = None if found.banding is None else found.banding.low_signal
                if region is None or region.reason:
                    return "not measurable"
                return f"{region.contribution:.2f} dB, {region.signed_excess:.2f} %"
    raise KeyError(f"{item.volume} slice {item.slice_index}")
