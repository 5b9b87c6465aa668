"""The ISMRMRD XML header that each fastMRI volume carries."""

import codecs
import math
import re
import reprlib
from dataclasses import dataclass
from typing import NoReturn
from xml.parsers import expat

from banding_removal.data.hdf5 import MAX_NAME

MAX_DEPTH = 8  # of elements; those that are used lie at most five deep
TOO_LARGE = 1e9  # for any number that is used
ENTITY = r"&(?!(?:amp|lt|gt|quot|apos|#\d+|#x[0-9a-fA-F]+);)"
CONTROL = r"[\0-\x08\x0b\x0c\x0e-\x1f]"


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
    """Collects the text of each element by its path below the root; of equal paths, the first.

    Prefixes of namespaces are left out, declared or not. Elements of `encoding` are kept for each.
    """

    def __init__(self) -> None:
        self.by_path: dict[str, str] = {}
        self.encodings: list[dict[str, str]] = []
        self._tags: list[str] = []
        self._depth = 0
        self._text: list[str] = []

    def read(self, xml: str) -> str | None:
        """Read as far as it is well-formed; what is wrong then."""
        parser = expat.ParserCreate()
        parser.StartElementHandler = self._start
        parser.CharacterDataHandler = self._text.append
        parser.EndElementHandler = self._end
        parser.StartDoctypeDeclHandler = lambda name, system, pubid, _: refuse_doctype(
            name, pubid, system
        )
        try:
            parser.Parse(xml, True)
        except expat.ExpatError as error:
            return str(error)
        return None

    def _start(self, tag: str, _attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth <= MAX_DEPTH:
            self._tags.append(tag.rpartition(":")[2])
        if self._tags[1:] == ["encoding"]:
            self.encodings.append({})
        self._text.clear()

    def _end(self, _tag: str) -> None:
        if self._depth <= MAX_DEPTH:
            path = "/".join(self._tags[1:])
            text = " ".join("".join(self._text).split())
            self.by_path.setdefault(path, text)
            if path.startswith("encoding/"):
                self.encodings[-1].setdefault(path, text)
            self._tags.pop()
        self._depth -= 1
        self._text.clear()


def refuse_doctype(name: str, pubid: str | None, system: str | None) -> NoReturn:
    """Always raises a ValueError: entity bombs need a document type, ISMRMRD headers do not."""
    raise ValueError(
        f"the ISMRMRD header declares a document type {reprlib.repr((name, pubid, system))}, "
        "which is refused"
    )


def parse_header(xml: bytes, matrix: tuple[int, int] | None = None) -> ScanHeader:
    """Parse an ISMRMRD header (namespaces ignored), as far as it can be read.

    The acquired columns are left = encoded_y // 2 - center and right = left + maximum + 1, with
    center and maximum of `encodingLimits/kspace_encoding_step_1`.

    The encoding that the XML declaration names is not relied on: .NET programs say UTF-16 and write
    UTF-8. Text that is not UTF-16 or UTF-8 is taken as Windows-1252. Where an `&` begins no entity,
    it stands for itself. If the XML is not well-formed, everything before the mistake is read.

    Args:
        xml: the header.
        matrix: of k-space, (readout, phase encode): of several `encoding` elements, the first with
            this size is used, or else the first.

    Raises:
        ValueError: the header declares a document type (entity bombs need one, ISMRMRD headers do
            not).
    """
    texts = _Texts()
    mistake = texts.read(_decode(xml))
    problems = [] if mistake is None else [f"it is not well-formed XML: {mistake}"]
    of_scan = _Numbers(texts.by_path, problems)
    encodings = [_Numbers(found, problems) for found in texts.encodings]
    if len(encodings) > 1:
        before, first = [*problems], encodings[0]
        fitting = (e for e in encodings if e.size("encoding/encodedSpace") == matrix)
        encodings = [next(fitting, first)]
        problems[:] = before  # what is wrong in the others does not matter
    encoding = encodings[0] if encodings else of_scan
    encoded_y = encoding.whole("encoding/encodedSpace/matrixSize/y")
    limits, acquired = "encoding/encodingLimits/kspace_encoding_step_1", None
    center, maximum = (encoding.whole(f"{limits}/{name}") for name in ("center", "maximum"))
    if encoded_y is not None and center is not None and maximum is not None:
        left = encoded_y // 2 - center
        acquired = (left, left + maximum + 1)
    system = "acquisitionSystemInformation"
    scanner = texts.by_path.get(f"{system}/systemModel") or "unknown"
    if len(scanner) > MAX_NAME or not scanner.isprintable():
        problems.append(f"{system}/systemModel is {reprlib.repr(scanner)}, not a name")
        scanner = "unknown"
    if mistake is None and system not in texts.by_path and not texts.encodings:
        problems.append(f"it has neither {system} nor encoding")
    return ScanHeader(
        scanner=scanner,
        field_strength=of_scan.number(f"{system}/systemFieldStrength_T"),
        receiver_channels=of_scan.whole(f"{system}/receiverChannels"),
        acquired=acquired,
        encoded_size=encoding.size("encoding/encodedSpace"),
        recon_size=encoding.size("encoding/reconSpace"),
        problems=tuple(dict.fromkeys(problems)),
    )


@dataclass(frozen=True)
class _Numbers:
    """Numbers by path; anything else counts as not given, and is noted among the problems."""

    texts: dict[str, str]
    problems: list[str]

    def number(self, path: str) -> float | None:
        value = self.texts.get(path)
        if not value:
            return None
        try:
            result = float(value)
        except ValueError:
            result = math.nan
        if not abs(result) < TOO_LARGE:
            self.problems.append(f"{path} is {reprlib.repr(value)}, not a number")
            return None
        return result

    def whole(self, path: str) -> int | None:
        value = self.number(path)
        return None if value is None else round(value)

    def size(self, path: str) -> tuple[int, int] | None:
        x, y = (self.whole(f"{path}/matrixSize/{axis}") for axis in "xy")
        return None if x is None or y is None or min(x, y) < 1 else (x, y)


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
            text = xml.decode("cp1252", "replace")
    # Before the declaration, XML allows nothing; after the root, some writers leave zeros.
    text = re.sub(r"^<\?xml.*?\?>", "", text.strip("\0 \t\r\n\ufeff"), count=1, flags=re.DOTALL)
    return re.sub(CONTROL, " ", re.sub(ENTITY, "&amp;", text))
