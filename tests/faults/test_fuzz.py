"""The quick part of `tests/faults/fuzz.py`: some hundred mutated files and settings."""

import faulthandler
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from banding_removal.data.in_subprocess import SubprocessLostError, map_in_subprocess
from banding_removal.data.index import index_folder, read_volumes
from banding_removal.data.volume import Volume, VolumeError
from tests.faults.fuzz import (
    CASES,
    FuzzSettings,
    Material,
    fuzz,
    make_material,
    mutated_file,
    run_kind,
)
from tests.support.fastmri_files import write_volume

QUICK = {
    "volume bytes": 60,
    "volume truncated": 30,
    "volume blocks": 30,
    "volume structure": 80,
    "volume header": 40,
    "reconstruction bytes": 20,
    "reconstruction structure": 20,
    "checkpoint bytes": 10,
    "checkpoint pickle": 30,
    "checkpoint values": 30,
    "words": 50,
}


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return make_material(tmp_path_factory.mktemp("sound"))


@pytest.mark.parametrize("kind", CASES)
def test_every_mutated_file_is_read_or_refused_by_name(material: Material, kind: str) -> None:
    row = run_kind(kind, QUICK[kind], 0, material)
    assert row.findings == []
    assert row.counts.total() == QUICK[kind]
    assert row.counts["refused"] > 0
    assert row.memory < 1 << 30


def test_a_case_is_the_same_for_the_same_seed_and_number(material: Material) -> None:
    def content(number: int, seed: int) -> bytes:
        return mutated_file("volume bytes", number, seed, material).read_bytes()

    assert content(3, 0) == content(3, 0)
    assert content(3, 0) != content(4, 0)
    assert content(3, 0) != content(3, 1)


def test_some_of_the_cases_of_every_kind_of_volume_can_be_read() -> None:
    (row,) = fuzz(FuzzSettings(kind="volume header", cases=0.02))
    assert row.counts["read"] > 0


# --- reading in a subprocess ---


def loop(item: int) -> int:
    while item == 2:
        pass
    return 10 * item


def crash(item: int) -> int:
    faulthandler.disable()  # it would say so at length
    if item == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    return 10 * item


def test_an_item_that_hangs_or_crashes_costs_no_other_one() -> None:
    for function, how in ((loop, "s of CPU time"), (crash, "killed by SIGSEGV")):
        first, second, third = map_in_subprocess(function, [1, 2, 3], 0.2)
        assert (first, third) == (10, 30)
        assert isinstance(second, SubprocessLostError)
        assert how in str(second)


def greedy(item: int) -> int:
    try:
        return len(bytes(item << 20))
    except MemoryError:
        return 0


def test_memory_is_bounded() -> None:
    assert list(map_in_subprocess(greedy, [1, 1500, 2])) == [1 << 20, 0, 2 << 20]


def test_waiting_does_not_count_as_hanging() -> None:
    assert list(map_in_subprocess(time.sleep, [0.5], 0.2)) == [None]


def zero_the_heap(path: Path) -> None:
    """Zeros where HDF5 keeps texts, as a damaged disk may leave: its reader loops over them."""
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL") + 16
    content[heap : heap + 4000] = bytes(4000)
    path.write_bytes(content)


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[Path]:
    for name in ("a.h5", "b.h5", "c.h5"):
        write_volume(tmp_path / name)
    zero_the_heap(tmp_path / "b.h5")
    yield tmp_path


def test_a_volume_over_which_hdf5_loops_is_named_and_costs_no_other_one(damaged: Path) -> None:
    a, b, c = read_volumes([damaged / f"{name}.h5" for name in "abc"], seconds=0.5)
    assert isinstance(a, Volume)
    assert isinstance(c, Volume)
    assert isinstance(b, VolumeError)
    assert "b.h5" in str(b)


def test_an_index_with_a_volume_over_which_hdf5_loops_names_it(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("banding_removal.data.in_subprocess.TIME_LIMIT_S", 0.5)
    with pytest.raises(VolumeError, match=r"1 unusable volume\(s\) \(the other 2 .*\):\n.*b\.h5"):
        index_folder(damaged, cache_folder=damaged / "cache")
    found = index_folder(damaged, cache_folder=damaged / "cache", skip_bad=True)
    assert [volume.name for volume in found] == ["a.h5", "c.h5"]
