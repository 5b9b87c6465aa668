"""Phantom volumes as HDF5 files in the fastMRI knee layout, and data sets of them.

write_volume(Path("file1000001.h5"), make_volume(DEMO, seed=0))
write_dataset(Path("phantom"), DEMO, train_volumes=24, val_volumes=8, seed=0)
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from banding_removal.data.phantom.scan import PhantomVolume, make_volume
from banding_removal.data.phantom.shapes import SLICE_RANGE_MM
from banding_removal.data.phantom.spec import PhantomSpec
from banding_removal.data.phantom.variety import varied
from banding_removal.data.write_volume import write_fastmri

ACQUISITION = {"PD": "CORPD_FBK", "PDFS": "CORPDFS_FBK"}
MANIFEST = "phantom.json"
GENERATOR_VERSION = 1  # to be raised when a seed gives another volume than before
SPLITS = ("multicoil_train", "multicoil_val")
FIRST_NUMBER = (1000001, 2000001)  # in the file names of each split

# as in fastMRI, x is readout and y phase encode
HEADER = """<?xml version="1.0" encoding="utf-8"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
  <acquisitionSystemInformation>
    <systemVendor>Phantom</systemVendor>
    <systemModel>{system_model}</systemModel>
    <systemFieldStrength_T>1.494</systemFieldStrength_T>
    <receiverChannels>{coils}</receiverChannels>
  </acquisitionSystemInformation>
  <experimentalConditions>
    <H1resonanceFrequency_Hz>63610038</H1resonanceFrequency_Hz>
  </experimentalConditions>
  <encoding>
    <encodedSpace>{encoded_space}</encodedSpace>
    <reconSpace>{recon_space}</reconSpace>
    <encodingLimits>
      <kspace_encoding_step_1>
        <minimum>0</minimum><maximum>{maximum}</maximum><center>{center}</center>
      </kspace_encoding_step_1>
    </encodingLimits>
    <trajectory>cartesian</trajectory>
  </encoding>
</ismrmrdHeader>
"""


def ismrmrd_header(volume: PhantomVolume) -> bytes:
    """The volume's ISMRMRD XML header.

    The acquired columns [left, right) of W follow from kspace_encoding_step_1 as in fastMRI:
    left = W // 2 - center and right = left + maximum + 1.
    """
    spec = volume.spec
    left, right = spec.acquired
    slice_mm = 2 * SLICE_RANGE_MM / (spec.slices - 1)

    def space(size: tuple[int, int]) -> str:
        x, y = (f"{pixels * spec.pixel_mm:.6g}" for pixels in size)
        return (
            f"<matrixSize><x>{size[0]}</x><y>{size[1]}</y><z>1</z></matrixSize>"
            f"<fieldOfView_mm><x>{x}</x><y>{y}</y><z>{slice_mm:.6g}</z></fieldOfView_mm>"
        )

    return HEADER.format(
        system_model=volume.system_model,
        coils=spec.coils,
        encoded_space=space(spec.kspace_size),
        recon_space=space(spec.target_size),
        maximum=right - left - 1,
        center=spec.kspace_size[1] // 2 - left,
    ).encode()


def write_volume(path: Path, volume: PhantomVolume) -> None:
    """Write one volume in the fastMRI knee layout; an existing file is replaced.

    Attributes: `acquisition`, `max` and `norm` (Frobenius) of the target, `patient_id`.

    Raises:
        OSError: the file cannot be written.
    """
    write_fastmri(
        path,
        kspace=volume.kspace,
        target=volume.target,
        header=ismrmrd_header(volume),
        acquisition=ACQUISITION[volume.contrast],
        patient_id=hashlib.sha256(f"phantom {volume.seed}".encode()).hexdigest(),
    )


def varied_specs(spec: PhantomSpec, seeds: Mapping[Path, int]) -> dict[Path, PhantomSpec]:
    """File -> specification: training volumes are varied, every other one has random anatomy.

    Validation volumes are as `spec` says.
    """
    specs = dict.fromkeys(seeds, spec)
    training = [path for path in seeds if path.parent.name == SPLITS[0]]
    for index, path in enumerate(training):
        specs[path] = varied(spec, seeds[path], "leaves" if index % 2 else "knee")
    return specs


def volume_seeds(folder: Path, seed: int, *volumes: int) -> dict[Path, int]:
    """File -> seed, for so many volumes in each split; no two volumes share a seed."""
    seeds = {}
    for number, count in enumerate(volumes):
        for index in range(count):
            entropy = np.random.SeedSequence([seed, number, index])
            name = f"file{FIRST_NUMBER[number] + index}.h5"
            seeds[folder / SPLITS[number] / name] = int(entropy.generate_state(1, np.uint64)[0])
    return seeds


def claim_folder(folder: Path, spec: PhantomSpec, seed: int, *, vary: bool = False) -> None:
    """Check that a folder holds volumes of this spec and seed, or none yet; then claim it.

    Raises:
        FileExistsError: it holds other data, which stay as they are.
    """
    manifest_path = folder / MANIFEST
    manifest = {"generator": GENERATOR_VERSION, "seed": seed, "spec": asdict(spec)}
    if vary:
        manifest["varied"] = True
    text = json.dumps(manifest, indent=2) + "\n"
    if manifest_path.exists():
        if _with_defaults(manifest_path.read_text()) != json.loads(text):
            raise FileExistsError(
                f"{folder} holds a phantom of another specification, seed or generator version "
                f"(see {manifest_path}); choose another folder or delete this one"
            )
        return
    for split in SPLITS:
        if (folder / split).exists():
            raise FileExistsError(
                f"{folder / split} exists, but {manifest_path} does not: the data are not a "
                "phantom made by this program; choose another folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{MANIFEST}.partial"
    partial.write_text(text)
    os.replace(partial, manifest_path)


def _with_defaults(text: str) -> Any:
    """The content of a manifest; fields that its version of `PhantomSpec` lacked have defaults."""
    defaults = {f.name: f.default for f in fields(PhantomSpec) if f.default is not MISSING}
    try:
        found = json.loads(text)
        found["spec"] = json.loads(json.dumps(defaults)) | found["spec"]
    except (ValueError, KeyError, TypeError):
        return None  # damaged, or another program's
    return found


def write_dataset(
    folder: Path,
    spec: PhantomSpec,
    *,
    train_volumes: int,
    val_volumes: int,
    seed: int,
    vary: bool = False,
    jobs: int = 1,
) -> list[Path]:
    """Fill `<folder>/multicoil_train` and `<folder>/multicoil_val` with different volumes.

    Existing files are skipped: an interrupted run continues where it stopped, and a later one may
    ask for more volumes. `<folder>/phantom.json` describes what the folder holds.

    Args:
        folder: created if it does not exist.
        spec: of every volume; with `vary`, of those for validation.
        train_volumes: number of volumes for training.
        val_volumes: number of volumes for validation.
        seed: of the whole data set, not negative.
        vary: the training volumes vary around `spec` (`varied_specs`).
        jobs: volumes made side by side.

    Returns:
        The files written by this call, in order.

    Raises:
        FileExistsError: the folder holds other data.
        OSError: the disk has too little space.
    """
    seeds = volume_seeds(folder, seed, train_volumes, val_volumes)
    specs = varied_specs(spec, seeds) if vary else dict.fromkeys(seeds, spec)
    claim_folder(folder, spec, seed, vary=vary)
    for split in SPLITS:
        (folder / split).mkdir(exist_ok=True)
    missing = [path for path in seeds if not path.exists()]
    # checked before hours of work
    needed, free = sum(specs[path].volume_bytes for path in missing), shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{folder} needs {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free"
        )

    def write(path: Path) -> None:
        write_volume(path, make_volume(specs[path], seeds[path]))

    with ThreadPoolExecutor(jobs) as pool:
        written = map(write, missing) if jobs == 1 else pool.map(write, missing)
        for _ in tqdm(written, "phantom volumes", len(missing), unit="volume", disable=None):
            pass  # a bar on a terminal
    return missing
