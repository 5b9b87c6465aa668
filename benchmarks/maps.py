"""Do a predictor's sensitivity maps fit the coils? What of their images is not an image times maps.

    python -m benchmarks.maps 'runs=[logs/demo,logs/demo_stage_2]'

With the coil images x of fully sampled k-space and the maps S, of norm 1 over coils, the share
1 - |S^H x|^2 / |x|^2 of the energy is beyond what one image can explain: noise, and what maps miss.
Maps that have nothing to do with the coils leave 1 - 1 / coils. Medians over the slices of each
run's validation set, beside maps without any network: the centre's coil images over their RSS.
"""

import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from banding_removal.command_line import user_errors
from banding_removal.config.overrides import from_words
from banding_removal.data.hdf5 import open_file, own_dataset
from banding_removal.data.operators import reduce, rss, to_image
from banding_removal.errors import ConfigError
from banding_removal.model.predictor import UnrolledNetwork
from banding_removal.model.sensitivity import center_columns
from banding_removal.runs.build import build_predictor
from banding_removal.runs.checkpoint import find_checkpoint, load_checkpoint
from banding_removal.runs.datasets import make_datasets
from banding_removal.runs.trained import saved_settings


@dataclass(frozen=True, kw_only=True)
class Maps:
    """What is looked at."""

    runs: tuple[Path, ...] = ()  # folders of runs, or checkpoints
    data_path: Path | None = None  # null: each run's own


@torch.no_grad()
def shares_outside(run: Path, data_path: Path | None = None) -> tuple[float, float]:
    """Medians over validation slices: with the run's maps, and with the centre over its RSS.

    Raises:
        CheckpointError: of the run.
        ConfigError: its predictor has no sensitivity maps.
        VolumeError: of its validation set.
    """
    path = find_checkpoint(run)
    checkpoint = load_checkpoint(path)
    settings = saved_settings(path, checkpoint)
    settings = replace(settings, data_path=data_path or settings.data_path)
    predictor = build_predictor(settings, torch.device("cpu"), checkpoint, path).eval()
    if not isinstance(predictor, UnrolledNetwork):
        raise ConfigError(f"{path}: {settings.predictor} has no sensitivity maps to compare")
    dataset = make_datasets(settings)[1]
    learnt, plain = [], []
    for number, (volume, slice_index) in enumerate(dataset.places):
        example = dataset[number]
        masked, acs_lines = example.masked_kspace[None], torch.tensor([example.acs_lines])
        with open_file(dataset.volumes[volume].path) as file:
            stored = own_dataset(file, "kspace")[slice_index]
        kspace = torch.from_numpy(stored).reshape(masked.shape)
        maps = predictor.sensitivity_maps(masked, example.mask[None], acs_lines)
        center = to_image(masked * center_columns(acs_lines, masked.shape[-1]))
        learnt.append(_outside(kspace, maps))
        plain.append(_outside(kspace, center / rss(center).clamp(min=1e-30)))
    return statistics.median(learnt), statistics.median(plain)


def _outside(kspace: Tensor, maps: Tensor) -> float:
    inside = reduce(kspace, maps).abs().square().sum()
    return 1 - float(inside / kspace.abs().square().sum())


def main(words: list[str]) -> None:
    """Print a line a run."""
    settings = from_words(Maps(), words)
    if not settings.runs:
        raise ConfigError("name runs: runs=[logs/demo]")
    print(f"{'run':40} {'its maps':>10} {'centre / RSS':>14}")
    for run in settings.runs:
        learnt, plain = shares_outside(run, settings.data_path)
        print(f"{run!s:40} {learnt:10.3f} {plain:14.3f}", flush=True)


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
