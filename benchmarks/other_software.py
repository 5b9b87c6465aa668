"""Reconstructions by other software, evaluated beside a checkpoint.

    python -m benchmarks.other_software checkpoint=logs/pretrain
    python -m benchmarks.other_software volumes=8 probe=true

Zero-filled images (NumPy) and, where the `bart` command is installed (Uecker et al., the BART
toolbox; Debian's package `bart`), ESPIRiT maps with an L1-wavelet penalty. Volumes are undersampled
along either axis with the checkpoint's masks, reconstructed slice by slice, written to a temporary
folder as fastMRI files, and evaluated as a user's own files are.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from banding_removal.command_line import user_errors
from banding_removal.config.overrides import from_plain, from_words
from banding_removal.config.settings import REPOSITORY
from banding_removal.data.batch import Example
from banding_removal.data.dataset import Draw, SliceDataset
from banding_removal.data.index import index_folder
from banding_removal.evaluation.settings import EvaluateSettings, evaluate_files
from banding_removal.runs.checkpoint import find_checkpoint, load_checkpoint

Image = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class OtherSettings:
    """What is compared."""

    checkpoint: Path = REPOSITORY / "logs" / "run"
    data: Path = REPOSITORY / "datasets" / "phantom" / "multicoil_val"
    logs: Path = REPOSITORY / "logs"
    volumes: int = 4  # number of volumes, the first ones
    wavelet: float = 0.02  # weight of the L1-wavelet penalty: best SSIM on noisy phantom slices
    iterations: int = 60
    probe: bool = False
    device: str = "auto"


def zero_filled(example: Example) -> Image:
    """Root of the sum of squares over coils of the inverse FFT of the masked k-space."""
    kspace = example.masked_kspace.numpy()
    axes = (-2, -1)
    coils = np.fft.ifft2(np.fft.ifftshift(kspace, axes=axes), norm="ortho")
    return np.linalg.norm(np.fft.fftshift(coils, axes=axes), axis=0).astype(np.float32)


def write_cfl(path: Path, values: NDArray[np.complex64]) -> None:
    """An array in BART's format, first axis fastest."""
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, values.shape)) + "\n")
    path.with_suffix(".cfl").write_bytes(values.astype(np.complex64).tobytes(order="F"))


def read_cfl(path: Path) -> NDArray[np.complex64]:
    """The array of a BART file, without axes of length 1."""
    shape = [int(n) for n in path.with_suffix(".hdr").read_text().splitlines()[1].split()]
    values = np.frombuffer(path.with_suffix(".cfl").read_bytes(), np.complex64)
    return values.reshape(shape, order="F").squeeze()


def bart(settings: OtherSettings, example: Example) -> Image:
    """ESPIRiT maps from the centre lines, then `pics` with an L1-wavelet penalty."""
    with tempfile.TemporaryDirectory() as folder:
        kspace, maps, image = (Path(folder) / name for name in ("kspace", "maps", "image"))
        # BART's axes: readout, phase encode, partition, coil
        write_cfl(kspace, example.masked_kspace.numpy().transpose(1, 2, 0)[:, :, None])
        centre = str(example.acs_lines)
        # -c 0: no cut, else the background would be zero; -S: in the unit of the data
        for words in (
            ["ecalib", "-m", "1", "-c", "0", "-r", centre, str(kspace), str(maps)],
            [
                *("pics", "-S", "-i", str(settings.iterations)),
                *("-R", f"W:3:0:{settings.wavelet}", str(kspace), str(maps), str(image)),
            ],
        ):
            subprocess.run(["bart", *words], check=True, capture_output=True)
        return np.abs(read_cfl(image)).astype(np.float32)


def write_set(
    folder: Path, dataset: SliceDataset, reconstruct: Callable[[Example], Image], name: str
) -> None:
    """Write all volumes in both orientations, `<folder>/x` and `<folder>/y`, upright."""
    for axis, rotated in (("x", False), ("y", True)):
        (folder / axis).mkdir(parents=True)
        images: dict[str, list[Image]] = {}
        for index in tqdm(range(len(dataset)), desc=f"{name}, along {axis}", leave=False):
            example = dataset[Draw(epoch=0, index=index, rotated=rotated)]
            image = reconstruct(example)
            images.setdefault(example.name, []).append(image.T if example.rotated else image)
        for file_name, slices in images.items():
            with h5py.File(folder / axis / file_name, "w") as file:
                file["reconstruction"] = np.stack(slices)


def main(settings: OtherSettings) -> None:
    """Reconstruct, evaluate and print the tables."""
    trained = from_plain(load_checkpoint(find_checkpoint(settings.checkpoint)).settings)
    files = index_folder(settings.data, cache_folder=settings.logs / "index")[: settings.volumes]
    dataset = SliceDataset(
        files,
        trained.mask_sampler(),
        seed=trained.seed,
        offsets_from_data=trained.offsets_from_data,
    )
    methods: dict[str, Callable[[Example], Image]] = {"zero-filled": zero_filled}
    if shutil.which("bart"):
        methods["ESPIRiT, L1-wavelet (BART)"] = lambda example: bart(settings, example)
    else:
        print("the command bart is not installed: ESPIRiT is left out")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "volumes").mkdir()
        for file in files:
            (folder / "volumes" / file.name).symlink_to(file.path)
        sets = {}
        for i, (method, reconstruct) in enumerate(methods.items()):
            sets[method] = folder / str(i)
            write_set(sets[method], dataset, reconstruct, method)
        print(
            evaluate_files(
                EvaluateSettings(
                    sets={**sets, settings.checkpoint.resolve().name: settings.checkpoint},
                    volumes=folder / "volumes",
                    output=folder / "evaluation",
                    logs=folder / "logs",
                    probe=settings.probe,
                    device=settings.device,
                )
            )
        )


if __name__ == "__main__":
    with user_errors():
        main(from_words(OtherSettings(), sys.argv[1:]))
