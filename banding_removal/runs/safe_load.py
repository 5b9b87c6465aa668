"""Files that `torch.save` made, from anywhere: read as tensors and plain data, or refused.

PyTorch's own reader of weights is used, and is not alone relied upon: what it is given is an
archive without compression, whose pickle names nothing but tensors and ordered dictionaries, and
what it returns is checked from end to end. Whatever the file says, no code of it runs, and memory
is a small multiple of its size.
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

MOST_VALUES = 10_000_000  # numbers, texts, tensors and containers
DEEPEST = 50  # containers within each other
_NAMES = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch [A-Za-z0-9]+Storage"
)


class RefusedError(Exception):
    """Content that is not read; the message says why."""


def load_plain(stored: bytes) -> Any:
    """What `torch.save` stored, on the CPU: tensors, numbers, texts, and containers of them.

    Raises:
        RefusedError: it is no such archive, is damaged, or holds anything else.
    """
    _check_pickle(_pickle_of(stored))
    try:
        content = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
    except Exception as error:  # of a pickle that was made by hand, an unpickler may raise any
        raise RefusedError(f"it is damaged: {_short(error)}") from error
    return _Copy(len(stored)).of(content)


def _pickle_of(stored: bytes) -> bytes:
    """The pickle in the archive, which holds everything uncompressed and once."""
    if stored[:1] == b"\x80":
        raise RefusedError("it is a bare pickle, which could run code")
    try:
        with zipfile.ZipFile(io.BytesIO(stored)) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise RefusedError("it is a compressed archive, which PyTorch does not write")
            if sum(member.file_size for member in members) > len(stored):
                raise RefusedError("it declares more than it holds")
            pickles = [member for member in members if member.filename.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise RefusedError("it is not an archive that torch.save made")
            return archive.read(pickles[0])
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise RefusedError(f"it is damaged, or no archive at all: {_short(error)}") from error


def _check_pickle(pickled: bytes) -> None:
    """Refuse a pickle that names anything but what tensors are made of."""
    try:
        with warnings.catch_warnings():
            # Of escapes in damaged texts, which say nothing to a user.
            warnings.simplefilter("ignore", DeprecationWarning)
            for code, argument, _ in pickletools.genops(pickled):
                if code.name == "GLOBAL" and _NAMES.fullmatch(str(argument)) is None:
                    raise RefusedError(
                        f"it holds Python objects ({_short(argument)}), which could run code"
                    )
                if code.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1"):
                    raise RefusedError("it holds Python objects, which could run code")
    except (ValueError, IndexError, UnicodeDecodeError, OverflowError) as error:
        raise RefusedError(f"it is damaged: {_short(error)}") from error


class _Copy:
    """Copies of plain data, each value for itself, within the bounds of an honest file."""

    def __init__(self, size: int) -> None:
        self._size = size  # of the file, bytes
        self._values = 0

    def of(self, value: Any, depth: int = 0) -> Any:
        self._values += 1
        # What refers to itself, or to the same many times, would never end.
        if self._values > MOST_VALUES or depth > DEEPEST:
            raise RefusedError("it holds containers within each other without end")
        if isinstance(value, dict):
            if not all(isinstance(key, str | int) for key in value):
                raise RefusedError("it holds keys that are neither texts nor whole numbers")
            return {key: self.of(item, depth + 1) for key, item in dict.items(value)}
        if isinstance(value, list | tuple):
            copied = [self.of(item, depth + 1) for item in value]
            return copied if isinstance(value, list) else tuple(copied)
        if isinstance(value, Tensor):
            return self._tensor(value)
        if value is None or type(value) in (bool, int, float, str):
            return value
        raise RefusedError(f"it holds a {type(value).__name__}, which is no plain data")

    def _tensor(self, value: Tensor) -> Tensor:
        """A tensor as it is; one that repeats a few values over a huge size is refused."""
        if type(value) is not Tensor or value.layout != torch.strided or value.device.type != "cpu":
            raise RefusedError(f"it holds a {type(value).__name__} that is no plain tensor")
        if value.numel() * value.element_size() > self._size:
            raise RefusedError(f"it declares a tensor of shape {tuple(value.shape)}, and lacks it")
        return value.detach()


def fits(value: Any, hint: Any) -> bool:
    """Whether plain data are as a type hint says: of classes, unions, `dict[...]`, `list[...]`."""
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


def _short(reason: object) -> str:
    lines = str(reason).splitlines() or [repr(reason)]
    return lines[0][:200]
