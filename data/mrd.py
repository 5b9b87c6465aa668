"""Raw data of a scanner (ISMRMRD / MRD): 2-D Cartesian acquisitions, sorted into k-space.

Inati et al., "ISMRM Raw data format", Magnetic Resonance in Medicine 77 (2017). Lines are placed by
`kspace_encode_step_1` and `center_sample`; what was not measured stays zero. Averages are averaged.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from banding_removal.data.hdf5 import READ_ERRORS, open_file, own_dataset, read_text
from banding_removal.data.mrd_header import ScanEncoding, read_encoding
from banding_removal.data.volume import VolumeError

Complex = NDArray[np.complex64]
CHUNK = 256  # acquisitions that are read at a time
NOISE_SAMPLES = 10  # per coil, at least, to estimate the covariance
# ISMRMRD's names of flags -> what the acquisitions are
LEFT_OUT = {
    "ACQ_IS_NAVIGATION_DATA": "navigators",
    "ACQ_IS_PHASECORR_DATA": "phase correction lines",
    "ACQ_IS_HPFEEDBACK_DATA": "feedback data",
    "ACQ_IS_RTFEEDBACK_DATA": "feedback data",
    "ACQ_IS_DUMMYSCAN_DATA": "dummy scans",
    "ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA": "surface coil correction lines",
    "ACQ_IS_PHASE_STABILIZATION_REFERENCE": "phase stabilisation lines",
    "ACQ_IS_PHASE_STABILIZATION": "phase stabilisation lines",
}


class VolumeKey(NamedTuple):
    """Counters that tell the volumes of a scan apart."""

    contrast: int
    repetition: int
    phase: int
    set: int


@dataclass(kw_only=True)
class SliceSum:
    """Sum of the acquisitions of a slice, (coil, H, W), and how many each column has, (W,)."""

    kspace: Complex
    count: NDArray[np.int64]


@dataclass(kw_only=True)
class RawScan:
    """All lines of a scan."""

    xml: bytes
    encoding: ScanEncoding
    coils: int = 0
    volumes: dict[VolumeKey, dict[int, SliceSum]] = field(default_factory=lambda: defaultdict(dict))
    noise: list[Complex] = field(default_factory=list)  # (coil, samples)
    noise_dwell: float = 0.0  # microseconds
    dwell: float = 0.0  # of the image's lines
    left_out: Counter[str] = field(default_factory=Counter)

    def whitening(self) -> NDArray[np.complex128] | None:
        """L^-1 (coil, coil), where L L^H is the noise covariance; None: no noise scan.

        Noise is scaled from the noise scan's bandwidth to the image's (Kellman and McVeigh,
        Magnetic Resonance in Medicine 54, 2005), so that it has unit variance afterwards.

        Raises:
            ValueError: the noise scan has too few samples, NaN, or coils without noise.
        """
        if not self.noise:
            return None
        coils = sorted({len(samples) for samples in self.noise} - {self.coils})
        if coils:
            raise ValueError(
                f"the noise scan has {coils[0]} coils, the image {self.coils}: use whiten=false"
            )
        samples = np.concatenate(self.noise, axis=1).astype(np.complex128)
        if samples.shape[1] < NOISE_SAMPLES * self.coils or not np.isfinite(samples).all():
            raise ValueError(
                f"the noise scan has {samples.shape[1]} samples, too few for {self.coils} coils, "
                "or NaN among them: use whiten=false"
            )
        covariance = samples @ samples.conj().T / samples.shape[1]
        if self.noise_dwell > 0 and self.dwell > 0:
            covariance = covariance * (self.noise_dwell / self.dwell)
        try:
            whitening = np.linalg.inv(np.linalg.cholesky(covariance))
        except np.linalg.LinAlgError as error:
            raise ValueError(
                "coils of the noise scan have no noise, or the same: use whiten=false"
            ) from error
        return whitening.astype(np.complex128)


def import_ismrmrd() -> ModuleType:
    """The package `ismrmrd`, which only the import of raw data needs.

    Raises:
        VolumeError: it is not installed.
    """
    try:
        import ismrmrd
    except ImportError as error:
        raise VolumeError(
            "raw data are read with the package ismrmrd, which is not installed: "
            "pip install ismrmrd"
        ) from error
    module: ModuleType = ismrmrd
    return module


def read_scan(path: Path, dataset: str = "dataset") -> RawScan:
    """Read a file and sort its lines.

    Args:
        path: HDF5 file in the ISMRMRD format.
        dataset: the group in it.

    Raises:
        VolumeError: the package ismrmrd is missing, the file cannot be read, the scan is not 2-D
            Cartesian, or lines do not fit into the matrix of the header.
    """
    ismrmrd = import_ismrmrd()
    try:
        with open_file(path) as file:
            if dataset not in file:
                raise ValueError(f"no group {dataset!r}; the file holds: {', '.join(file)}")
            fields = own_dataset(file[dataset], "data").dtype.names  # not a link to another file
            if not {"head", "data"} <= set(fields or ()):
                raise ValueError(f"{dataset}/data does not hold acquisitions")
            xml = read_text(file[dataset], "xml")
        scan = RawScan(xml=xml, encoding=read_encoding(xml))
        with ismrmrd.File(str(path), "r") as file:
            for acquisition in _in_chunks(file[dataset].acquisitions):
                _add(scan, acquisition, ismrmrd)
    except READ_ERRORS as error:
        raise VolumeError(f"{path}: {' '.join(str(error).split()) or repr(error)}") from error
    if not scan.volumes:
        raise VolumeError(f"{path}: no line of an image; left out: {dict(scan.left_out) or 'none'}")
    return scan


def _in_chunks(acquisitions: Any) -> Iterator[Any]:
    """One by one, but read many at a time, which is ten times as fast."""
    for start in range(0, len(acquisitions), CHUNK):
        yield from acquisitions[start : start + CHUNK]


def _add(scan: RawScan, line: Any, ismrmrd: ModuleType) -> None:
    """Add a line where it belongs."""
    if line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT):
        scan.noise.append(line.data)
        scan.noise_dwell = float(line.sample_time_us)
        return
    kind = _why_left_out(scan, line, ismrmrd)
    if kind:
        scan.left_out[kind] += 1
        return
    scan.coils = scan.coils or line.active_channels
    if line.active_channels != scan.coils:
        raise ValueError(f"lines have {scan.coils} and {line.active_channels} coils")
    counters = line.idx
    if counters.kspace_encode_step_2:
        raise ValueError("the scan is 3-D (two phase-encode axes): only 2-D data can be imported")
    scan.dwell = float(line.sample_time_us)
    height, width = scan.encoding.size
    key = VolumeKey(counters.contrast, counters.repetition, counters.phase, counters.set)
    column = width // 2 - scan.encoding.center + counters.kspace_encode_step_1
    samples, start = _readout(line, height, line.is_flag_set(ismrmrd.ACQ_IS_REVERSE))
    stop = start + samples.shape[1]
    if column not in range(width) or start < 0 or stop > height:
        raise ValueError(
            f"line {counters.kspace_encode_step_1} of slice {counters.slice} belongs to column "
            f"{column}, rows {start} to {stop}, outside of the header's matrix ({height} x {width})"
        )
    if not np.isfinite(samples).all():
        raise ValueError(
            f"line {counters.kspace_encode_step_1} of slice {counters.slice} has NaN or Inf"
        )
    slices = scan.volumes[key]
    if counters.slice not in slices:
        slices[counters.slice] = SliceSum(
            kspace=np.zeros((scan.coils, height, width), np.complex64),
            count=np.zeros(width, np.int64),
        )
    slices[counters.slice].kspace[:, start:stop, column] += samples
    slices[counters.slice].count[column] += 1


def _why_left_out(scan: RawScan, line: Any, ismrmrd: ModuleType) -> str:
    """What a line is that does not belong to the image; empty if it does."""
    for flag, kind in LEFT_OUT.items():
        if line.is_flag_set(getattr(ismrmrd, flag)):
            return kind
    if line.encoding_space_ref:
        return f"lines of encoding {line.encoding_space_ref}"
    if scan.encoding.separate_calibration and line.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION):
        return "lines of a separate calibration scan"
    return ""


def _readout(line: Any, height: int, backwards: bool) -> tuple[Complex, int]:
    """The samples that count, (coil, samples), in the order of k-space, and their first row.

    Sample `center_sample`, as it is stored, is the centre of k-space. Some writers give its number
    in the order of k-space instead, which for reversed lines is one sample off: such a line
    reaches beyond the matrix by one.
    """
    stop = line.number_of_samples - line.discard_post
    samples = line.data[:, line.discard_pre : stop]
    center = line.center_sample - line.discard_pre
    if backwards:
        samples = samples[:, ::-1]
        center = samples.shape[1] - 1 - center
    start = height // 2 - center
    if backwards and start + samples.shape[1] == height + 1:
        start -= 1
    return samples, start
