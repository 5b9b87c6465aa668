"""The ISMRMRD XML header that each fastMRI volume carries."""

import codecs
import math
import re
import reprlib
from dataclasses import dataclass
from typing import NoReturn
from xml.etree import ElementTree

MAX_DEPTH = 8  # of elements; those that are used lie at most five deep


@dataclass(frozen=True, kw_only=True)
class ScanHeader:
    """What this project uses of a header; None where the header does not give it."""

    scanner: str = "unknown"  # systemModel
    field_strength: float | None = None  # tesla
    receiver_channels: int | None = None
    acquired: tuple[int, int] | None = None  # measured phase-encode columns [left, right)
    encoded_size: tuple[int, int] | None = None  # matrix of k-space: (readout, phase encode)
    recon_size: tuple[int, int] | None = None  # scanner's images: (readout, phase encode)
    problems: tuple[str, ...] = ()  # what could not be read


class _Texts:
    """Collects the text of each element by its path; of equal paths, the first."""

    def __init__(self) -> None:
        self.by_path: dict[str, str] = {}
        self._tags: list[str] = []
        self._depth = 0
        self._text: list[str] = []

    def start(self, tag: str, _attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth <= MAX_DEPTH:
            self._tags.append(tag.rpartition("}")[2])  # without the namespace
        self._text.clear()

    def data(self, text: str) -> None:
        self._text.append(text)

    def end(self, _tag: str) -> None:
        if self._depth <= MAX_DEPTH:
            path = "/".join(self._tags[1:])
            self.by_path.setdefault(path, " ".join("".join(self._text).split()))
            self._tags.pop()
        self._depth -= 1
        self._text.clear()

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        refuse_doctype(name, pubid, system)


def refuse_doctype(name: str, pubid: str | None, system: str | None) -> NoReturn:
    """Always raises a ValueError: entity bombs need a document type, ISMRMRD headers do not."""
    raise ValueError(
        f"the ISMRMRD header declares a document type {reprlib.repr((name, pubid, system))}, "
        "which is refused"
    )


def parse_header(xml: bytes) -> ScanHeader:
    """Parse an ISMRMRD header (namespace ignored), as far as it can be read.

    The acquired columns are left = encoded_y // 2 - center and right = left + maximum + 1, with
    center and maximum of `encodingLimits/kspace_encoding_step_1`.

    The encoding that the XML declaration names is not relied on: .NET programs say UTF-16 and write
    UTF-8. Text that is not UTF-16 or UTF-8 is taken as Latin-1. If the XML is not well-formed,
    everything before the mistake is read.

    Raises:
        ValueError: the header declares a document type (entity bombs need one, ISMRMRD headers do
            not).
    """
    problems = []
    texts = _Texts()
    parser = ElementTree.XMLParser(target=texts)
    try:
        parser.feed(_decode(xml))
        parser.close()
    except ElementTree.ParseError as error:
        problems.append(f"it is not well-formed XML: {error}")

    def number(path: str) -> float | None:
        value = texts.by_path.get(path)
        if not value:
            return None
        try:
            result = float(value)
        except ValueError:
            result = math.nan
        if not math.isfinite(result):
            problems.append(f"{path} is {reprlib.repr(value)}, not a number")
            return None
        return result

    def whole(path: str) -> int | None:
        value = number(path)
        return None if value is None else round(value)

    def size(path: str) -> tuple[int, int] | None:
        x, y = (whole(f"encoding/{path}/matrixSize/{axis}") for axis in "xy")
        return None if x is None or y is None or min(x, y) < 1 else (x, y)

    encoded_y = whole("encoding/encodedSpace/matrixSize/y")
    limits, acquired = "encoding/encodingLimits/kspace_encoding_step_1", None
    center, maximum = (whole(f"{limits}/{name}") for name in ("center", "maximum"))
    if encoded_y is not None and center is not None and maximum is not None:
        left = encoded_y // 2 - center
        acquired = (left, left + maximum + 1)
    system = "acquisitionSystemInformation"
    return ScanHeader(
        scanner=texts.by_path.get(f"{system}/systemModel") or "unknown",
        field_strength=number(f"{system}/systemFieldStrength_T"),
        receiver_channels=whole(f"{system}/receiverChannels"),
        acquired=acquired,
        encoded_size=size("encodedSpace"),
        recon_size=size("reconSpace"),
        problems=tuple(dict.fromkeys(problems)),
    )


def _decode(xml: bytes) -> str:
    """The header as text, without its XML declaration."""
    if xml.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = xml.decode("utf-16", "replace")
    elif b"\0" in xml[:2]:
        text = xml.decode("utf-16-be" if xml.startswith(b"\0") else "utf-16-le", "replace")
    else:
        try:
            text = xml.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = xml.decode("latin-1")
    # Before the declaration, XML allows nothing; after the root, some writers leave zeros.
    return re.sub(r"^<\?xml.*?\?>", "", text.strip("\0 \t\r\n\ufeff"), count=1, flags=re.DOTALL)
