"""The ISMRMRD XML header that each fastMRI volume carries."""

import math
import reprlib
from dataclasses import dataclass
from xml.etree import ElementTree


@dataclass(frozen=True, kw_only=True)
class ScanHeader:
    """What this project uses of a header; None where the header does not give it."""

    scanner: str  # systemModel, "unknown" where missing
    field_strength: float | None  # tesla
    acquired: tuple[int, int] | None  # measured phase-encode columns [left, right)
    recon_size: tuple[int, int] | None  # scanner's images: (readout, phase encode)


class _TreeWithoutDoctype(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError(
            f"the ISMRMRD header declares a document type {reprlib.repr((name, pubid, system))}, "
            "which is refused"
        )


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


def parse_header(xml: bytes) -> ScanHeader:
    """Parse an ISMRMRD header (namespace ignored).

    The acquired columns are left = encoded_y // 2 - center and right = left + maximum + 1, with
    center and maximum of `encodingLimits/kspace_encoding_step_1`.

    Raises:
        ValueError: as in `parse_tree` and `number_at`.
    """
    root = parse_tree(xml)
    encoded_y = number_at(root, "encoding/encodedSpace/matrixSize/y")
    center = number_at(root, "encoding/encodingLimits/kspace_encoding_step_1/center")
    maximum = number_at(root, "encoding/encodingLimits/kspace_encoding_step_1/maximum")
    acquired = None
    if encoded_y is not None and center is not None and maximum is not None:
        left = int(encoded_y) // 2 - int(center)
        acquired = (left, left + int(maximum) + 1)
    recon_x = number_at(root, "encoding/reconSpace/matrixSize/x")
    recon_y = number_at(root, "encoding/reconSpace/matrixSize/y")
    recon_size = None
    if recon_x is not None and recon_y is not None and min(recon_x, recon_y) >= 1:
        recon_size = (int(recon_x), int(recon_y))
    return ScanHeader(
        scanner=(text_at(root, "acquisitionSystemInformation/systemModel") or "unknown").strip(),
        field_strength=number_at(root, "acquisitionSystemInformation/systemFieldStrength_T"),
        acquired=acquired,
        recon_size=recon_size,
    )
