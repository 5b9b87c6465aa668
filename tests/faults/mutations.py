"""Files and settings as damage, other software or an attacker might make them; seeded."""

import contextlib
import copy
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.random import Generator

BOMB = (
    '<?xml version="1.0"?><!DOCTYPE z [<!ENTITY a "aaaaaaaaaa">'
    + "".join(
        f'<!ENTITY {b} "{10 * f"&{a};"}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "]><ismrmrdHeader>&i;</ismrmrdHeader>"
)
ENTITY = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><ismrmrdHeader>&b;</ismrmrdHeader>'
ORIGIN: dict[str, str | int] = {
    **{"checkpoint": "c", "checkpoint_sha256": "0", "epoch": 1, "step": 1},
    **{"source": "s", "source_bytes": 1, "orientation": "x", "version": "0"},
}

# --- bytes ---


def flip_bytes(content: bytes, rng: Generator) -> bytes:
    """Change up to 32 bytes, in half of the cases all within the first or last 2 kB."""
    changed = bytearray(content)
    size = len(changed)
    low, high = [(0, size), (0, min(size, 2048)), (max(0, size - 2048), size)][rng.integers(3)]
    for place in rng.integers(low, high, size=int(rng.integers(1, 33))):
        bit = 1 << int(rng.integers(8))
        changed[place] = (
            changed[place] ^ bit if rng.random() < 0.5 else int(rng.choice([0, 1, 255]))
        )
    return bytes(changed)


def truncate(content: bytes, rng: Generator) -> bytes:
    """Cut off the end, or cut out a part after the beginning."""
    place = int(rng.integers(len(content)))
    if rng.random() < 0.7:
        return content[:place]
    return content[:place] + content[place + int(rng.integers(1, 512)) :]


def swap_blocks(content: bytes, rng: Generator) -> bytes:
    """Swap, zero or overwrite blocks whose size is a power of two."""
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        size = 1 << int(rng.integers(3, 11))
        a, b = (int(rng.integers(max(1, len(changed) - size))) for _ in range(2))
        first, second = changed[a : a + size], changed[b : b + size]
        how = rng.integers(3)
        changed[a : a + len(second)] = bytes(len(second)) if how == 0 else second
        if how == 1 and len(first) == len(second):
            changed[b : b + size] = first
    return bytes(changed)


# --- HDF5 through its own library ---


def _odd_array(rng: Generator) -> Any:
    """Data of an unexpected type or shape."""
    shape = tuple(int(n) for n in rng.choice([0, 1, 2, 3, 12, 14, 16], size=rng.integers(0, 6)))
    kinds: list[Callable[[], Any]] = [
        lambda: np.ones(shape, rng.choice(["f2", "f4", "f8", ">f4", "i1", "u8", "?", "c8", "c16"])),
        lambda: np.full(shape, rng.choice([np.nan, np.inf, -np.inf, 1e38, -1.0]), "f4"),
        lambda: np.full(shape, b"text", "S7"),
        lambda: np.full(shape, "text", dtype=h5py.string_dtype()),
        lambda: np.zeros(shape, [("r", "f4"), ("i", "f8")]),
        lambda: np.zeros(shape, [("r", "f4"), ("i", "f4"), ("more", "i4", (3,))]),
        lambda: np.zeros(shape, h5py.enum_dtype({"no": 0, "yes": 1})),
        lambda: np.zeros(shape, "V9"),
        lambda: h5py.Empty(rng.choice(["f4", "c8", "S3"])),
        lambda: "x" * int(rng.choice([0, 1, 101, 5_000])),
        lambda: np.bytes_(rng.bytes(8)),
        lambda: "line\nend\x1b[31m",
        lambda: float(rng.choice([np.nan, np.inf, -1.0, 0.0, 1e300])),
        lambda: int(rng.integers(-5, 2**40)),
    ]
    return kinds[rng.integers(len(kinds))]()


def _put(file: h5py.File, key: str, rng: Generator) -> None:
    """Put something else under the name of a dataset."""
    folder = Path(file.filename).parent
    if key in file:
        del file[key]
    shape = (2, 2, 16, 14) if key == "kspace" else (2, 12, 12)
    dtype = np.dtype("c8" if key == "kspace" else "f4")
    huge = tuple(int(n) for n in rng.choice([1, 2, 2**16, 2**31, 2**40], size=len(shape)))
    data = (rng.standard_normal(shape) + 1).astype(dtype)
    elsewhere = str(rng.choice([str(folder / "other.h5"), "/dev/zero", str(folder / "none"), ""]))

    def virtual() -> None:
        source = h5py.VirtualSource(elsewhere or ".", "kspace", shape=shape, dtype=dtype)
        layout = h5py.VirtualLayout(shape, dtype)
        layout[:] = source
        file.create_virtual_dataset(key, layout)

    def part() -> None:
        made = file.create_dataset(key, shape, dtype, chunks=(1, *shape[1:]))
        made[: rng.integers(2)] = 1

    def compressed() -> None:
        file.create_dataset(
            key,
            data=data if rng.random() < 0.5 else np.zeros_like(data),
            chunks=True,
            shuffle=bool(rng.integers(2)),
            fletcher32=bool(rng.integers(2)),
            compression=str(rng.choice(["gzip", "lzf"])),
        )

    def declared() -> None:
        chunks = tuple(min(n, 16) for n in huge) if rng.random() < 0.7 else None
        file.create_dataset(key, huge, dtype, chunks=chunks)

    def vlen() -> None:
        made = file.create_dataset(key, (2,), h5py.vlen_dtype(dtype.newbyteorder("<")))
        made[0] = np.ones(3, dtype)

    def soft() -> None:
        file[key] = h5py.SoftLink(str(rng.choice(["/none", f"/{key}", "/inside", "/away/kspace"])))

    def external() -> None:
        file[key] = h5py.ExternalLink(elsewhere or "none.h5", "/kspace")

    def outside() -> None:
        size = int(np.prod(shape)) * dtype.itemsize
        file.create_dataset(key, shape, dtype, external=[(elsewhere or "none", 0, size)])

    def references() -> None:
        file.create_dataset(key, shape, h5py.ref_dtype)

    def plain() -> None:
        file[key] = _odd_array(rng)

    def named_type() -> None:
        file[key] = dtype

    changes = [
        virtual,
        part,
        compressed,
        declared,
        vlen,
        soft,
        external,
        outside,
        references,
        plain,
    ]
    changes += [plain, plain, named_type, lambda: file.create_group(key), lambda: None]
    changes[rng.integers(len(changes))]()


def change_structure(content: bytes, rng: Generator, folder: Path) -> bytes:
    """Replace one to three datasets or attributes, through HDF5's own library."""
    path = folder / "structure.h5"
    path.write_bytes(content)
    with h5py.File(path, "r+") as file:
        for _ in range(int(rng.integers(1, 4))):
            names = (*file, *file, "reconstruction_rss", "mask")
            # HDF5 refuses to write some: sizes that overflow, large attributes.
            with contextlib.suppress(OSError, ValueError):
                if rng.random() < 0.6:
                    _put(file, str(rng.choice(names)), rng)
                else:
                    attributes = ["max", "acquisition", *file.attrs]
                    file.attrs[str(rng.choice(attributes))] = _odd_array(rng)
    return path.read_bytes()


def change_header(content: bytes, rng: Generator, folder: Path) -> bytes:
    """Replace the ISMRMRD header: damaged, with odd numbers, an XML bomb, or deeply nested."""
    path = folder / "header.h5"
    path.write_bytes(content)
    with h5py.File(path, "r+") as file:
        old = bytes(file["ismrmrd_header"][()])
        numbers = [b"-1", b"1e309", b"nan", b"", b"9" * 500, b"1e300", b"0x10", "\u0663".encode()]
        tag = [b"<x>", b"<y>", b"<center>", b"<maximum>", b"<systemFieldStrength_T>"][
            rng.integers(5)
        ]
        options = [
            flip_bytes(old, rng),
            truncate(old, rng),
            swap_blocks(old, rng),
            old.replace(tag, tag + numbers[rng.integers(len(numbers))]),
            old.replace(b"<systemModel>", b"<systemModel>" + b"\n A" * int(rng.integers(60))),
            old.replace(b"UTF-8", [b"UTF-16", b"none", b"utf-7", b"latin1"][rng.integers(4)]),
            BOMB.encode(),
            ENTITY.encode(),
            b"<a>" * int(rng.integers(100_000)),
            rng.bytes(int(rng.integers(300))),
        ]
        del file["ismrmrd_header"]
        text = options[rng.integers(len(options))]
        # Of variable length, as in fastMRI's files, unless it contains zeros.
        fixed = text and (b"\0" in text or rng.random() < 0.2)
        file["ismrmrd_header"] = np.bytes_(text) if fixed else text
    return path.read_bytes()


# --- checkpoints and settings ---


def odd_value(rng: Generator) -> Any:
    """A value that settings and checkpoints do not expect."""
    values: list[Any] = [None, True, -1, 0, 10**30, float("nan"), float("inf"), "", "x", "../../x"]
    values += [
        "${oc.env:HOME}",
        "${lr}",
        "???",
        "[1,2",
        "\x00",
        "x" * 1000,
        [],
        {},
        [[]],
        {"a": {}},
    ]
    values += [
        torch.zeros(3),
        torch.zeros(1).expand(10**9),
        b"bytes",
        {1: 2},
        1.5,
        ("a", 1),
        [None],
    ]
    return copy.deepcopy(values[rng.integers(len(values))])


def change_value(content: Any, rng: Generator) -> Any:
    """Change, delete or add one value somewhere in nested containers."""
    content = copy.deepcopy(content)
    place, inside = content, True
    while inside:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = keys[rng.integers(len(keys))]
        inside = isinstance(place[key], dict | list) and bool(place[key]) and rng.random() < 0.9
        if inside:
            place = place[key]
            continue
        how = rng.integers(4)
        if how == 0:
            del place[key]
        elif how == 1 and isinstance(place, dict):
            place["new"] = odd_value(rng)
        else:
            place[key] = odd_value(rng)
    return content


def change_pickle(archive: bytes, rng: Generator) -> bytes:
    """Change the pickle or the other members of an archive written by `torch.save`."""
    made = io.BytesIO()
    how = int(rng.integers(6))
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(made, "w") as new:
        for member in old.infolist():
            content = old.read(member)
            if member.filename.endswith("data.pkl"):
                changed = [flip_bytes, truncate, swap_blocks]
                content = changed[how](content, rng) if how < 3 else content
            elif how == 3 and rng.random() < 0.2:
                content = truncate(content, rng) if content else content
            elif how == 4 and rng.random() < 0.1:
                continue
            name = member.filename if how != 5 else f"../{member.filename}"
            new.writestr(name, content)
    return made.getvalue()


def odd_word(keys: list[str], rng: Generator) -> str:
    """A word of a command line."""
    pieces = [
        "[",
        "]",
        "{",
        "}",
        ":",
        ",",
        "&a",
        "*a",
        "!!python/object:os.system",
        "~",
        "|",
        "${lr}",
    ]
    pieces += [
        "null",
        "1e5",
        "-1",
        "4",
        ".inf",
        "true",
        "x",
        "'",
        '"',
        "#",
        "\t",
        "\u2028",
        "%",
        "@",
    ]
    pieces += [
        "!!binary",
        "2001-01-01",
        "0o7",
        "9" * 30,
        "9" * 5000,
        "[" * 3000,
        "<<",
        "?",
        "- ",
        "\\",
    ]
    value = "".join(rng.choice(pieces, size=int(rng.choice([0, 1, 1, 1, 2, 5]))))
    key = keys[rng.integers(len(keys))]
    if rng.random() < 0.2:
        key += str(rng.choice([".x", "[0]", ".0", "..", "[", ".", "=", " "]))
    return f"{key}={value}"


def change_content(archive: bytes, rng: Generator) -> bytes:
    """Save the content of an archive again, with one value changed."""
    content = torch.load(io.BytesIO(archive), weights_only=True)
    made = io.BytesIO()
    if rng.random() < 0.5:
        content["settings"] = change_value(content["settings"], rng)
    else:
        content = change_value(content, rng)
    torch.save(content, made)
    return made.getvalue()


# --- sound files in other layouts ---


def rewrite(content: bytes, folder: Path) -> bytes:
    """Rewrite a volume in the newest HDF5 format, with compressed chunks."""
    source, path = folder / "source.h5", folder / "rewritten.h5"
    source.write_bytes(content)
    with h5py.File(source) as old, h5py.File(path, "w", libver="latest") as new:
        new.attrs.update(dict(old.attrs))
        for key, value in old.items():
            pieces = {"chunks": (1, *value.shape[1:])} if value.ndim > 1 else {}
            compression = {"compression": "gzip"} if value.ndim > 1 else {}
            new.create_dataset(key, data=value[()], **pieces, **compression)
    return path.read_bytes()


def reconstruction(folder: Path) -> bytes:
    """A file of reconstructions as this project writes them."""
    path = folder / "reconstruction.h5"
    with h5py.File(path, "w") as file:
        file["reconstruction"] = np.random.default_rng(0).random((2, 12, 12), np.float32)
        file.attrs.update(ORIGIN)
    return path.read_bytes()
