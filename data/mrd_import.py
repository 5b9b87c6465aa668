"""Volumes in the fastMRI layout from a scanner's raw data."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from banding_removal.data.mrd import RawScan, SliceSum, VolumeKey, read_scan
from banding_removal.data.mrd_header import ScanEncoding, volume_header
from banding_removal.data.operators import center_crop, rss, to_image
from banding_removal.data.volume import SUFFIX, Volume, VolumeError, read_volume
from banding_removal.data.write_volume import write_fastmri

LARGEST = 4e-4  # of an imported image: fastMRI's unit, on which one term of the loss depends


@dataclass(frozen=True, kw_only=True)
class ImportedScan:
    """What became of a file."""

    volumes: tuple[Volume, ...]
    averages: int  # of the line that has most
    whitened: bool
    left_out: dict[str, int]  # kind of acquisition -> how many
    missing: dict[str, str]  # volume -> which lines it lacks at the end


def import_scan(
    path: Path,
    folder: Path,
    *,
    dataset: str = "dataset",
    whiten: bool = True,
    acquisition: str | None = None,
) -> ImportedScan:
    """Write a volume for each contrast, repetition, cardiac phase and set of a scan.

    Files are named like the raw data; a counter with several values is added to the name. k-space
    is (slice, coil, readout, phase encode) with readout oversampling, scaled so that the largest
    pixel is 4e-4; the attribute `scale` is the factor. Fully sampled volumes get the target
    `reconstruction_rss`, cropped to the scanner's field of view; undersampled ones get their mask.

    Args:
        path: HDF5 file in the ISMRMRD format.
        folder: created if it does not exist.
        dataset: the group in the file.
        whiten: remove the noise correlation of the coils, if the file has a noise scan.
        acquisition: name of the contrast; None: the protocol in the header.

    Raises:
        VolumeError: as in `read_scan`; or slices of a volume have different lines.
        FileExistsError: a volume is already there.
        OSError: a volume cannot be written.
    """
    scan = read_scan(path, dataset)
    try:
        matrix = scan.whitening() if whiten else None
        parts = {_name(path, key, scan): _volume(scan, key) for key in sorted(scan.volumes)}
    except ValueError as error:
        raise VolumeError(f"{path}: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    there = [str(folder / name) for name in parts if (folder / name).exists()]
    if there:
        raise FileExistsError(f"{', '.join(there)}: exists; choose another folder or remove it")
    volumes = []
    for name, (slices, columns) in parts.items():
        kspace = np.stack(slices)
        if matrix is not None:
            kspace = np.einsum("ij,sjhw->sihw", matrix, kspace).astype(np.complex64)
        _write(folder / name, scan, kspace, columns, acquisition or scan.encoding.protocol)
        volumes.append(read_volume(folder / name))
    return ImportedScan(
        volumes=tuple(volumes),
        averages=max(int(s.count.max()) for v in scan.volumes.values() for s in v.values()),
        whitened=matrix is not None,
        left_out=dict(scan.left_out),
        missing={
            name: missing
            for name, (_, columns) in parts.items()
            if (missing := _missing_lines(columns, scan.encoding))
        },
    )


def _missing_lines(columns: NDArray[np.bool_], encoding: ScanEncoding) -> str:
    """The lines that the header has beyond the last one measured, if these are more than a gap."""
    found = np.flatnonzero(columns)
    gap = int(np.diff(found).max(initial=1))
    last = int(found[-1]) - encoding.size[1] // 2 + encoding.center
    if encoding.last is None or encoding.last - last < gap:
        return ""
    return f"lines {last + 1} to {encoding.last}"


def _name(path: Path, key: VolumeKey, scan: RawScan) -> str:
    """`scan.h5`, or `scan_contrast1_repetition0.h5` where these counters have several values."""
    several = [name for i, name in enumerate(key._fields) if len({k[i] for k in scan.volumes}) > 1]
    return "_".join([path.stem, *(f"{name}{getattr(key, name)}" for name in several)]) + SUFFIX


def _volume(scan: RawScan, key: VolumeKey) -> tuple[list[NDArray[np.complex64]], NDArray[np.bool_]]:
    """Mean k-space (coil, H, W) of each slice, in their order, and the measured columns (W,)."""
    slices = [scan.volumes[key][number] for number in sorted(scan.volumes[key])]
    columns = slices[0].count > 0
    different = [
        number
        for number, part in sorted(scan.volumes[key].items())
        if not np.array_equal(part.count > 0, columns)
    ]
    if different:
        raise ValueError(
            f"slices {different} of {key._asdict()} do not have the same lines as the first slice: "
            "was the scan interrupted?"
        )
    return [_mean(part) for part in slices], columns


def _mean(part: SliceSum) -> NDArray[np.complex64]:
    mean = part.kspace / np.maximum(part.count, 1).astype(np.float32)
    return mean.astype(np.complex64)


def _write(
    path: Path,
    scan: RawScan,
    kspace: NDArray[np.complex64],
    columns: NDArray[np.bool_],
    acquisition: str,
) -> None:
    images = np.stack(list(_images(kspace, scan.encoding.crop)))
    largest = float(images.max())
    if largest == 0:
        raise VolumeError(f"{path.name}: all samples are zero")
    scale = LARGEST / largest
    found = np.flatnonzero(columns)
    left, right = int(found[0]), int(found[-1]) + 1
    complete = bool(columns[left:right].all())
    write_fastmri(
        path,
        kspace=kspace * np.float32(scale),
        target=images * np.float32(scale) if complete else None,
        mask=None if complete else columns.astype(np.uint8),
        header=volume_header(scan.xml, scan.encoding, (left, right), scan.coils),
        acquisition=acquisition,
        patient_id=hashlib.sha256(path.name.encode()).hexdigest(),
        scale=scale,
    )


def _images(kspace: NDArray[np.complex64], crop: tuple[int, int]) -> Iterator[NDArray[np.float32]]:
    """RSS images (h, w)."""
    for slice_kspace in kspace:
        image = rss(to_image(torch.from_numpy(slice_kspace)))
        yield center_crop(image[0], crop).numpy()
