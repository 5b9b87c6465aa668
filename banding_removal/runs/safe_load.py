"""Files written by `torch.save`, from any source: read as tensors and plain data, or refused.

`torch.load(weights_only=True)` runs no code from a file. But it ignores the archive's checksums,
and a file of a few bytes can make it allocate gigabytes (`bytearray(2 * 10**9)`, a zip bomb) or
return containers that never end when one walks through them, or a tensor of 10**12 elements that
are all the same number in memory. The checks here rule that out: whatever a file contains, the
memory it takes to read is a small multiple of its size.
"""

import io
import pickletools
import re
import types
import warnings
import zipfile
from typing import Any, Union, get_args, get_origin

import torch
from torch import Tensor

MAX_DEPTH = 50  # of nested containers
_ZIP = b"PK\x03\x04"  # without it, torch.load falls back to its older formats
# The first of the five pickles before the numbers in files of PyTorch 0.1.10 to 1.5.
_OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
ONLY_WEIGHTS = "Where the file was made, save its weights alone (its state_dict) with torch.save"
_ALLOWED = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch [A-Za-z0-9]+Storage"
)


class RefusedError(Exception):
    """A file that is not read. The message says why: "is damaged: ..." or "is refused: ..."."""


def load_plain(stored: bytes) -> Any:
    """What `torch.save` stored: tensors on the CPU, numbers, strings, None, containers of them.

    Raises:
        RefusedError: the file is damaged, not such an archive, or holds anything else.
    """
    if not stored.startswith((_ZIP, _OLD)):
        raise RefusedError(
            "is damaged, or is not a zip archive (or an older file) written by torch.save"
        )
    try:
        if stored.startswith(_ZIP):
            pickles = [io.BytesIO(_pickle_in(stored))]
        else:
            pickles = [io.BytesIO(stored)] * 5  # one after the other
        for pickled in pickles:
            _check_names(pickled)
        # From memory: torch.load might take a file for a tar archive, the oldest of its formats.
        content = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
        # In a pickle, each value takes at least a byte.
        max_values = sum(pickled.tell() for pickled in set(pickles))
        return _PlainCopy(max_values=max_values, max_bytes=len(stored)).of(content)
    except RefusedError:
        raise
    except Exception as error:  # a forged archive or pickle can make its reader raise anything
        raise RefusedError(f"is damaged: {_first_line(error)}") from error


def _pickle_in(stored: bytes) -> bytes:
    """The pickle in the archive, all of whose members have been compared with their CRC-32."""
    with zipfile.ZipFile(io.BytesIO(stored)) as archive:
        members = archive.infolist()
        # Compressed members, and members that share their bytes, can unpack to any size.
        if sum(member.file_size for member in members) > len(stored):
            raise RefusedError("is refused: its members are larger than the file")
        damaged = archive.testzip()
        if damaged is not None:
            raise RefusedError(f"is damaged: the checksum of {damaged} is wrong")
        pickles = [member for member in members if member.filename.lower().endswith("/data.pkl")]
        if len(pickles) != 1:
            raise RefusedError("is refused: it is not an archive written by torch.save")
        return archive.read(pickles[0])


def _check_names(pickled: io.BytesIO) -> None:
    """Read a pickle; refuse one that names anything but what tensors and dicts are made of."""
    with warnings.catch_warnings():
        # pickletools warns of escape sequences in damaged strings.
        warnings.simplefilter("ignore", DeprecationWarning)
        for code, argument, _ in pickletools.genops(pickled):
            names = code.name in ("GLOBAL", "STACK_GLOBAL", "INST")
            if names and _ALLOWED.fullmatch(str(argument)) is None:
                raise RefusedError(
                    f"is refused: it holds Python objects ({str(argument)[:60]!r}), which could "
                    f"run code. {ONLY_WEIGHTS}"
                )


class _PlainCopy:
    """Copies nested data into dicts, lists and tuples of their own, within bounds."""

    def __init__(self, max_values: int, max_bytes: int) -> None:
        self._values_left = max_values
        self._max_bytes = max_bytes  # of one tensor

    def of(self, value: Any, depth: int = 0) -> Any:
        self._values_left -= 1
        # Containers that hold themselves, or the same container many times over.
        if self._values_left < 0 or depth > MAX_DEPTH:
            raise RefusedError("is refused: its containers are nested without end")
        if isinstance(value, dict):
            if not all(isinstance(key, str | int) for key in value):
                raise RefusedError("is refused: a dictionary key is not a string or an integer")
            # Not value.items(): a pickle can give an OrderedDict an attribute of that name.
            return {key: self.of(item, depth + 1) for key, item in dict.items(value)}
        if isinstance(value, list):
            return [self.of(item, depth + 1) for item in value]
        if isinstance(value, tuple):
            return tuple(self.of(item, depth + 1) for item in value)
        if isinstance(value, Tensor):
            if value.numel() * value.element_size() > self._max_bytes:
                shape = tuple(value.shape)
                raise RefusedError(f"is refused: a tensor of shape {shape} is larger than the file")
            return value.detach()
        if value is None or type(value) in (bool, int, float, str):
            return value
        raise RefusedError(f"is refused: it holds a {type(value).__name__}, not plain data")


def fits(value: Any, hint: Any) -> bool:
    """Whether plain data match a type hint: a class, a union, `dict[...]` or `list[...]`."""
    kind, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if kind in (Union, types.UnionType):
        return any(fits(value, option) for option in inner)
    if kind is dict:
        return isinstance(value, dict) and all(
            fits(key, inner[0]) and fits(item, inner[1]) for key, item in value.items()
        )
    if kind is list:
        return isinstance(value, list) and all(fits(item, inner[0]) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [repr(error)])[0][:200]
