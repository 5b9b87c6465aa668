"""A simulated scan, imported, reconstructed and evaluated: docs/figures/raw_data.png.

    python -m benchmarks.raw_data_chain checkpoint=logs/train

It needs `ismrmrd_generate_cartesian_shepp_logan` of Debian's ismrmrd-tools, which stores the image
that it made the scan from, and the package ismrmrd. One scan is fully sampled, with a noise scan;
the other one is undersampled fourfold, in as many repetitions.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from banding_removal.command_line import user_errors
from banding_removal.config.overrides import from_words
from banding_removal.config.settings import REPOSITORY
from banding_removal.data.operators import center_crop, rss, to_image
from banding_removal.pictures.page import Row, grey, write_page

SIMULATOR = "ismrmrd_generate_cartesian_shepp_logan"
NOISE = "0.004"  # standard deviation in k-space; the object's largest value is 1


@dataclass(frozen=True, kw_only=True)
class RawDataChain:
    """What is run."""

    checkpoint: Path = REPOSITORY / "logs" / "train"
    folder: Path = REPOSITORY / "datasets" / "raw_data_chain"  # new
    picture: Path = REPOSITORY / "docs" / "figures" / "raw_data.png"
    size: int = 96
    coils: int = 6


def script(name: str, *words: str) -> None:
    """Run one of the project's commands."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(REPOSITORY / "scripts" / f"{name}.py"), *words]
    subprocess.run(command, check=True, env=environment)


def stored(path: Path, dataset: str) -> Tensor:
    """The first slice of a dataset."""
    with h5py.File(path) as file:
        return torch.from_numpy(np.asarray(file[dataset][0]))


def simulated_image(path: Path, size: int) -> Tensor:
    """RSS of the coil images that the simulator stored, (h, w), with a maximum of 1."""
    with h5py.File(path) as file:
        parts = file["dataset/coil_images"][0]  # (coil, phase encode, readout)
    coil_images = torch.from_numpy(parts["real"] + 1j * parts["imag"]).transpose(-1, -2)
    image = center_crop(rss(coil_images)[0], (size, size))
    return image / image.max()


def main(chain: RawDataChain) -> None:
    """Simulate, import, reconstruct, evaluate, and draw."""
    raw, volumes, images = (chain.folder / name for name in ("raw", "volumes", "images"))
    raw.mkdir(parents=True)
    options = ["-m", str(chain.size), "-c", str(chain.coils), "-n", NOISE]
    for name, more in (("full", ["-C"]), ("undersampled", ["-a", "4", "-w", "10"])):
        file = str(raw / f"{name}.h5")
        subprocess.run([SIMULATOR, *options, *more, "-o", file], check=True)
        script("import_mrd", f"raw={file}", f"output={volumes / name}")
    words = (f"checkpoint={chain.checkpoint}", "device=cpu")
    full = volumes / "full" / "full.h5"
    one = volumes / "undersampled" / "undersampled_repetition0.h5"
    script("reconstruct", *words, f"volumes={full}", f"output={images}", "orientation=both")
    script("reconstruct", *words, f"volumes={one}", f"output={images / 'undersampled'}")
    script(
        "evaluate",
        f"sets={{network: {chain.checkpoint}}}",
        f"volumes={full.parent}",
        *(f"output={chain.folder / 'report'}", f"logs={chain.folder}", "probe=false", "device=cpu"),
    )
    write_page(chain.picture, rows_of(chain, raw, images, full, one), [])


def rows_of(chain: RawDataChain, raw: Path, images: Path, full: Path, one: Path) -> list[Row]:
    """The pictures of both scans."""
    original = simulated_image(raw / "full.h5", chain.size)
    target = stored(full, "reconstruction_rss")
    white = float(target.max())

    def shown(image: Tensor) -> np.ndarray:
        image = center_crop(image.float(), (chain.size, chain.size))
        return grey(image / image.max(), 0, 0.5)

    error = target / white - original
    relative = float(error.norm() / original.norm())
    again = simulated_image(raw / "undersampled.h5", chain.size)
    zero_filled = rss(to_image(stored(one, "kspace")))[0]
    found = [stored(images / axis / "full.h5", "reconstruction") for axis in "xy"]
    other = stored(images / "undersampled" / one.name, "reconstruction")
    titles = ("simulated", "imported target", "difference x 10", "network, x", "network, y")
    first = [shown(original), shown(target), grey(error, -0.05, 0.1), *map(shown, found)]
    caption = f"Fully sampled. Target against the simulated image: {relative:.3f} in the 2-norm."
    second = dict(
        zip(
            ("simulated ", "zero-filled", "network"),
            map(shown, (again, zero_filled, other)),
            strict=True,
        )
    )
    return [
        Row(dict(zip(titles, first, strict=True)), caption),
        Row(second, "Undersampled by the scanner: no target, the lines of the scan."),
    ]


if __name__ == "__main__":
    with user_errors():
        main(from_words(RawDataChain(), sys.argv[1:]))
