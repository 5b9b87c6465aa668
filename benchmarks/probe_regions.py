"""Where does the probe find the orientation? Its accuracy when it sees a part of the pixels.

    python -m benchmarks.probe_regions 'sets={control: logs/a, direct: logs/b}' volumes=...

New classifiers (`banding_removal/metrics/probe.py`) are trained for each set (as those of
scripts/evaluate.py) and for each of: all pixels; the target's flat low-signal pixels, where banding
is measured; all others. Pixels that are not seen are zero in both images, in training and test.
`view=low_signal` shows the classifiers the image's low-signal texture instead of the image.
"""

import sys
from dataclasses import dataclass, replace

from torch import Tensor

from banding_removal.command_line import user_errors
from banding_removal.config.bounds import bounded
from banding_removal.config.overrides import from_words
from banding_removal.errors import ConfigError
from banding_removal.evaluation.image_sets import reference_volumes
from banding_removal.evaluation.measure import cropped
from banding_removal.evaluation.sets_settings import SetsSettings, choose_volumes, load_sets
from banding_removal.metrics.low_signal import low_signal_regions
from banding_removal.metrics.probe import Pair, probe
from banding_removal.metrics.probe_classifier import View
from banding_removal.runs.build import choose_device


@dataclass(frozen=True, kw_only=True)
class ProbeRegions(SetsSettings):
    """What is probed, and how."""

    steps: int = bounded(300, at_least=1)  # optimiser steps of each classifier
    view: View = "image"  # what a classifier sees of an image


def main(words: list[str]) -> None:
    """Train the classifiers and print a line for each set."""
    settings = from_words(ProbeRegions(), words)
    device = choose_device(settings.device)
    files = choose_volumes(settings)
    scales = {reference.name: reference.scale for reference in reference_volumes(files)}
    print("balanced accuracy by what the classifier sees (95 % intervals over volumes)")
    print(f"{'set':16} {'all':>22} {'low signal':>22} {'the rest':>22}")
    for images in load_sets(settings, files, device):
        name = images.name
        pairs: list[Pair] = []
        low_signal: list[Tensor] = []
        for given in images.slices:
            one = cropped(given, name)
            if one.along_y is None:
                raise ConfigError(f"set {name!r}, {one.name}: {one.why_no_along_y}")
            pairs.append(
                Pair(volume=one.name, slice_index=one.slice_index, r_x=one.along_x, r_y=one.along_y)
            )
            low_signal.append(low_signal_regions(one.target, scales[one.name]).low_signal)
        cells = [f"{name:16}"]
        for masks in (None, low_signal, [~mask for mask in low_signal]):
            seen = pairs
            if masks is not None:
                seen = [replace(p, seen=mask) for p, mask in zip(pairs, masks, strict=True)]
            found = probe(
                seen,
                view=settings.view,
                steps=settings.steps,
                seed=settings.seed,
                device=device,
            )
            cells.append(f"{found.balanced_accuracy!s:>22}")
        print(" ".join(cells), flush=True)


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
