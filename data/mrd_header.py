"""What an import takes from the header of raw data, and the header of the volumes that it writes.

k-space of a volume is as large as the scanner's zero-filled matrix: the encoded matrix, or more if
the scanner interpolated its images (then its pixels are smaller than field of view / matrix).
"""

import math
import reprlib
from dataclasses import dataclass
from xml.etree import ElementTree

from banding_removal.data.ismrmrd import refuse_doctype

NAMESPACE = "http://www.ismrm.org/ISMRMRD"
PRIVATE = ("subjectInformation", "studyInformation")  # name, birth date, accession number, ...
SEPARATE = ("separate", "external")  # calibration that is another scan, with another contrast


class _TreeWithoutDoctype(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        refuse_doctype(name, pubid, system)


def parse_tree(xml: bytes) -> ElementTree.Element:
    """The root of an ISMRMRD header.

    Raises:
        ValueError: the text is not well-formed XML, or declares a document type (entity bombs need
            one, ISMRMRD headers do not).
    """
    parser = ElementTree.XMLParser(target=_TreeWithoutDoctype())
    try:
        return ElementTree.fromstring(xml, parser)
    except (ElementTree.ParseError, LookupError) as error:
        raise ValueError(f"the ISMRMRD header is not well-formed XML: {error}") from error


def element_at(root: ElementTree.Element, path: str) -> ElementTree.Element | None:
    """The first element at a path of tags, in any namespace or none."""
    return root.find("/".join("{*}" + tag for tag in path.split("/")))


def text_at(root: ElementTree.Element, path: str) -> str | None:
    """The text at a path; None where there is no such element."""
    found = element_at(root, path)
    return None if found is None else found.text or ""


def number_at(root: ElementTree.Element, path: str) -> float | None:
    """The number at a path; None where the header has none.

    Raises:
        ValueError: text, NaN or infinity in place of a number.
    """
    value = text_at(root, path)
    if value is None:
        return None
    try:
        result = float(value)
    except ValueError:
        result = math.nan
    if not math.isfinite(result):
        raise ValueError(f"{path} of the ISMRMRD header is {reprlib.repr(value)}, not a number")
    return result


@dataclass(frozen=True, kw_only=True)
class ScanEncoding:
    """Where the samples of a scan belong."""

    size: tuple[int, int]  # of k-space, (readout, phase encode)
    crop: tuple[int, int]  # of the images
    center: int  # kspace_encode_step_1 of the centre
    last: int | None  # largest kspace_encode_step_1 of the protocol; None: the header has none
    separate_calibration: bool  # lines for calibration are another scan
    protocol: str


def read_encoding(xml: bytes) -> ScanEncoding:
    """Read and check the first encoding of a header.

    Raises:
        ValueError: the header cannot be read, lacks the matrix, or describes a scan that is not
            Cartesian or not 2-D.
    """
    root = parse_tree(xml)
    trajectory = (text_at(root, "encoding/trajectory") or "missing").strip()
    if trajectory != "cartesian":
        raise ValueError(f"the trajectory is {trajectory}: only Cartesian data can be imported")
    steps = number_at(root, "encoding/encodingLimits/kspace_encoding_step_2/maximum") or 0
    if steps > 0 or (number_at(root, "encoding/encodedSpace/matrixSize/z") or 1) > 1:
        raise ValueError("the scan is 3-D (two phase-encode axes): only 2-D data can be imported")
    axes = [_axis(root, axis) for axis in "xy"]
    center, last = (
        number_at(root, f"encoding/encodingLimits/kspace_encoding_step_1/{limit}")
        for limit in ("center", "maximum")
    )
    encoded_y = int(number_at(root, "encoding/encodedSpace/matrixSize/y") or 0)
    mode = text_at(root, "encoding/parallelImaging/calibrationMode") or ""
    protocol = text_at(root, "measurementInformation/protocolName") or "unknown"
    return ScanEncoding(
        size=(axes[0][0], axes[1][0]),
        crop=(axes[0][1], axes[1][1]),
        center=encoded_y // 2 if center is None else int(center),
        last=None if last is None else int(last),
        separate_calibration=mode.strip() in SEPARATE,
        protocol=protocol.strip(),
    )


def _axis(root: ElementTree.Element, axis: str) -> tuple[int, int]:
    """Columns of k-space and pixels of the image along x (readout) or y (phase encode)."""
    values = []
    for space in ("encodedSpace", "reconSpace"):
        for kind in ("matrixSize", "fieldOfView_mm"):
            path = f"encoding/{space}/{kind}/{axis}"
            value = number_at(root, path)
            if value is None or not 0 < value < 1e5:
                raise ValueError(f"{path} of the ISMRMRD header is {value}")
            values.append(value)
    encoded, encoded_mm, pixels, pixels_mm = values
    columns = max(int(encoded), round(pixels * encoded_mm / pixels_mm))
    return columns, max(1, min(columns, round(columns * pixels_mm / encoded_mm)))


def volume_header(
    xml: bytes, encoding: ScanEncoding, acquired: tuple[int, int], coils: int
) -> bytes:
    """The header of a volume: what `xml` says of the scanner and protocol, nothing of the patient.

    Args:
        xml: header of the raw data.
        encoding: of the same.
        acquired: phase-encode columns [left, right) of the volume.
        coils: their number.
    """
    root = parse_tree(xml)
    for tag in PRIVATE:
        found = element_at(root, tag)
        if found is not None:
            root.remove(found)
    for extra in root.findall("{*}encoding")[1:]:
        root.remove(extra)
    left, right = acquired
    for path, value in {
        "acquisitionSystemInformation/receiverChannels": coils,
        "encoding/encodedSpace/matrixSize/x": encoding.size[0],
        "encoding/encodedSpace/matrixSize/y": encoding.size[1],
        "encoding/reconSpace/matrixSize/x": encoding.crop[0],
        "encoding/reconSpace/matrixSize/y": encoding.crop[1],
        "encoding/encodingLimits/kspace_encoding_step_1/minimum": 0,
        "encoding/encodingLimits/kspace_encoding_step_1/maximum": right - left - 1,
        "encoding/encodingLimits/kspace_encoding_step_1/center": encoding.size[1] // 2 - left,
    }.items():
        _set(root, path, str(value))
    ElementTree.register_namespace("", NAMESPACE)
    text: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return text


def _set(root: ElementTree.Element, path: str, text: str) -> None:
    """Set the text at a path; elements that are missing are added."""
    parent, namespace = root, root.tag.rpartition("}")
    for tag in path.split("/"):
        found = element_at(parent, tag)
        if found is None:
            found = ElementTree.SubElement(parent, f"{namespace[0]}{namespace[1]}{tag}")
        parent = found
    parent.text = text
