"""Raw data in the ISMRMRD format, written with its package from known images."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import torch

from banding_removal.data.operators import to_kspace

HEADER = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
 <subjectInformation><patientName>Jane Doe</patientName></subjectInformation>
 <measurementInformation><patientPosition>HFS</patientPosition>
  <protocolName>PD sagittal</protocolName></measurementInformation>
 <acquisitionSystemInformation><systemModel>Aera</systemModel>
  <systemFieldStrength_T>1.494</systemFieldStrength_T></acquisitionSystemInformation>
 <experimentalConditions><H1resonanceFrequency_Hz>63610038</H1resonanceFrequency_Hz>
 </experimentalConditions>
 <encoding>
  <encodedSpace><matrixSize><x>{x}</x><y>{y}</y><z>{z}</z></matrixSize>
   <fieldOfView_mm><x>{x_mm}</x><y>{y_mm}</y><z>3</z></fieldOfView_mm></encodedSpace>
  <reconSpace><matrixSize><x>{recon_x}</x><y>{recon_y}</y></matrixSize>
   <fieldOfView_mm><x>100</x><y>100</y></fieldOfView_mm></reconSpace>
  <encodingLimits><kspace_encoding_step_1><minimum>0</minimum>
   <maximum>{maximum}</maximum><center>{center}</center></kspace_encoding_step_1></encodingLimits>
  <trajectory>{trajectory}</trajectory>{parallel}
 </encoding>
</ismrmrdHeader>"""
PARALLEL = """<parallelImaging>
<accelerationFactor><kspace_encoding_step_1>4</kspace_encoding_step_1>
<kspace_encoding_step_2>1</kspace_encoding_step_2></accelerationFactor>
<calibrationMode>{}</calibrationMode></parallelImaging>"""


def coil_images(
    slices: int = 2, coils: int = 3, size: tuple[int, int] = (24, 20), seed: int = 0
) -> np.ndarray:
    """A smooth object with sharp edges, seen by coils; complex64 (slice, coil, H, W).

    Along readout it fills the middle half, as with twofold oversampling.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    shape = ((2 * y) ** 2 + x**2 < 0.7) * (1 + 0.5 * np.sin(7 * x + 5 * y))
    phases = np.exp(2j * np.pi * rng.uniform(size=(slices, coils, 1, 1)))
    maps = 1 + rng.uniform(-0.5, 0.5, (slices, coils, 2, 1, 1)) * np.stack([x, y])
    return (shape * maps.prod(2) * phases).astype(np.complex64)


def kspace_of(images: np.ndarray) -> np.ndarray:
    """Centred orthonormal Fourier transform."""
    return to_kspace(torch.from_numpy(images)).numpy()


@dataclass(kw_only=True)
class RawFile:
    """Lines of k-space, collected in any order, and a header that describes them."""

    size: tuple[int, int]  # encoded matrix
    header: dict[str, Any] = field(default_factory=dict)
    lines: list[ismrmrd.Acquisition] = field(default_factory=list)

    def add(self, data: np.ndarray, *flags: int, center: int | None = None, **counters: int) -> Any:
        """Add a line (coil, samples); returns it."""
        line = ismrmrd.Acquisition.from_array(np.ascontiguousarray(data, np.complex64))
        line.center_sample = data.shape[1] // 2 if center is None else center
        line.sample_time_us = 4.0
        for name, value in counters.items():
            setattr(line.idx, {"line": "kspace_encode_step_1"}.get(name, name), value)
        for flag in flags:
            line.set_flag(flag)
        self.lines.append(line)
        return line

    def add_image(self, kspace: np.ndarray, lines: Any = None, **counters: int) -> "RawFile":
        """Add lines of k-space (slice, coil, H, W), the last slice first."""
        for number in reversed(range(len(kspace))):
            for line in range(kspace.shape[-1]) if lines is None else lines:
                self.add(kspace[number, :, :, line], line=line, slice=number, **counters)
        return self

    def write(self, path: Path) -> Path:
        """Write the file."""
        x, y = self.size
        given = {
            **{"x": x, "y": y, "z": 1, "x_mm": 200, "y_mm": 100, "recon_x": x // 2, "recon_y": y},
            **{"maximum": y - 1, "center": y // 2, "trajectory": "cartesian", "parallel": ""},
        }
        with ismrmrd.Dataset(str(path), "dataset", create_if_needed=True) as file:
            file.write_xml_header(HEADER.format(**given | self.header).encode())
            for line in self.lines:
                file.append_acquisition(line)
        return path
