"""What a trained predictor does with data unlike its training data, one difference at a time.

    python -m benchmarks.generalisation 'runs={control: <run>, adversary: <run>}'
    python -m benchmarks.generalisation 'runs={...}' 'shifts=[noise_x2,coils_12]' template=...

Each shift is a phantom of its own, like the demo's in all but one respect (of anatomy: a real head,
see benchmarks/brain.py), or the demo's phantom with another undersampling. One row per run and
shift is appended to <folder>/rows.jsonl; a row that exists is not computed again.
Without banding B and the signed excess are 0: negative ones are over-correction, as wrong as
banding.
"""

import json
import math
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from banding_removal.command_line import user_errors
from banding_removal.config.overrides import from_words
from banding_removal.config.settings import REPOSITORY
from banding_removal.data.index import index_folder
from banding_removal.data.mask_rules import MaskKind
from banding_removal.data.masks import MaskSampler
from banding_removal.data.phantom.files import write_dataset
from banding_removal.data.phantom.spec import DEMO, MEDIUM, PhantomSpec
from banding_removal.errors import ConfigError
from banding_removal.evaluation.evaluate import evaluate
from banding_removal.evaluation.image_sets import path_set, reference_volumes
from banding_removal.runs.build import choose_device
from benchmarks.brain import write_brains
from benchmarks.efficacy import metrics_of

SEED = 7000  # of the phantoms: no other benchmark's


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Data that differ from the demo's in one respect."""

    phantom: PhantomSpec = DEMO
    masks: MaskSampler | None = None  # None: as in the run's own validation
    head: bool = False


def _masks(kind: MaskKind = "magic", acceleration: int = 4, acs: float = 10) -> MaskSampler:
    return MaskSampler(kind=kind, accelerations=(acceleration,), acs=(acs,))


SHIFTS = {
    "none": Shift(),
    "head": Shift(head=True),
    "noise_x0.5": Shift(phantom=replace(DEMO, noise=(0.02, 0.045))),
    "noise_x2": Shift(phantom=replace(DEMO, noise=(0.08, 0.18))),
    "coils_2": Shift(phantom=replace(DEMO, coils=2)),
    "coils_12": Shift(phantom=replace(DEMO, coils=12)),
    "small_coils": Shift(phantom=replace(DEMO, coil_radius_mm=(25, 35))),
    "pd": Shift(phantom=replace(DEMO, fat_suppressed_share=0)),
    "pdfs": Shift(phantom=replace(DEMO, fat_suppressed_share=1)),
    "other_contrast": Shift(phantom=replace(DEMO, signal_spread=0.6)),
    "fov_110": Shift(phantom=replace(DEMO, fov_mm=110)),
    "fov_200": Shift(phantom=replace(DEMO, fov_mm=200)),
    "128": Shift(phantom=MEDIUM),
    "72": Shift(
        phantom=replace(DEMO, kspace_size=(72, 72), target_size=(72, 72), acquired=(1, 71))
    ),
    "oblong": Shift(phantom=replace(DEMO, kspace_size=(144, 108), acquired=(2, 106))),
    "all_acquired": Shift(phantom=replace(DEMO, acquired=(0, 96))),
    "acceleration_3": Shift(masks=_masks("quadrature", 3)),
    "acceleration_6": Shift(masks=_masks("quadrature", 6)),
    "acs_6": Shift(masks=_masks(acs=6)),
    "acs_16": Shift(masks=_masks(acs=16)),
    "equispaced": Shift(masks=_masks("equispaced")),
    "random": Shift(masks=_masks("random")),
}


@dataclass(frozen=True, kw_only=True)
class Generalisation:
    """Which runs are measured on which data."""

    folder: Path = REPOSITORY / "datasets" / "generalisation"
    runs: dict[str, Path] = field(default_factory=dict)  # name -> run folder or checkpoint
    shifts: tuple[str, ...] = ()  # none: all
    volume_count: int = 4  # of each shift
    template: Path | None = None  # of the head: see benchmarks/brain.py
    probe: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        unknown = [name for name in self.shifts if name not in SHIFTS]
        if unknown:
            raise ConfigError(f"{', '.join(unknown)}: none of {', '.join(SHIFTS)}")


def data_of(settings: Generalisation, name: str) -> Path:
    """The folder of a shift's volumes, made if they are not there."""
    shift = SHIFTS[name]
    counts: dict[str, Any] = {"train_volumes": 0, "val_volumes": settings.volume_count}
    if shift.head:
        folder = settings.folder / "head"
        if settings.template is None:
            raise ConfigError("the head needs template=...: see benchmarks/brain.py")
        write_brains(folder, shift.phantom, settings.template, **counts, seed=SEED)
    else:
        same = [other for other, its in SHIFTS.items() if its.phantom == shift.phantom]
        folder = settings.folder / same[0]
        write_dataset(folder, shift.phantom, **counts, seed=SEED)
    return folder / "multicoil_val"


def measure_run(settings: Generalisation, name: str, run: Path, shift: str) -> dict[str, Any]:
    """A row: overall metrics of a run on a shift, and B of each volume."""
    device = choose_device(settings.device)
    files = index_folder(data_of(settings, shift), cache_folder=settings.folder / "index")
    images = path_set(
        name, run, files, slice_range=(None, None), device=device, masks=SHIFTS[shift].masks
    )
    steps = 300 if settings.probe else None
    found = evaluate([images], reference_volumes(files), probe_steps=steps, device=device)
    (result,) = found.sets
    by_volume = [volume.metrics["low_signal.contribution"] for volume in result.volumes]
    known = [None if math.isnan(value) else value for value in by_volume]
    return {"metrics": metrics_of(result), "banding_by_volume": known}


def main(words: list[str]) -> None:
    """Measure all runs on all shifts; print each row as it is found."""
    settings = from_words(Generalisation(), words)
    torch.set_num_threads(1)
    rows = settings.folder / "rows.jsonl"
    rows.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    print(f"{'shift':15} {'run':14}   SSIM      B  volumes        excess  along across  bg   an")
    for shift in settings.shifts or SHIFTS:
        for name, run in settings.runs.items():
            key = {"shift": shift, "run": name, "folder": str(run)}
            row = next((row for row in known if key.items() <= row.items()), None)
            if row is None:
                row = {**key, **measure_run(settings, name, run, shift)}
                with rows.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            print(_line(row), flush=True)


def _line(row: dict[str, Any]) -> str:
    metrics = {key: math.nan if value is None else value for key, value in row["metrics"].items()}
    volumes = [value for value in row["banding_by_volume"] if value is not None] or [math.nan]
    names = ("low_signal.signed_excess", "low_signal.along", "low_signal.across")
    regions = ("background.contribution", "anatomy.contribution")
    ssim = (metrics["ssim"] + metrics["ssim_y"]) / 2
    return (
        f"{row['shift']:15} {row['run']:14} {ssim:.4f} {metrics['low_signal.contribution']:6.2f} "
        f"[{min(volumes):5.2f} {max(volumes):5.2f}] "
        + " ".join(f"{metrics[name]:6.2f}" for name in (*names, *regions))
    )


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
