"""The number of threads on a CPU."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from banding_removal.config.settings import Settings
from banding_removal.processes import threads
from banding_removal.processes.threads import set_threads, split_on_cores
from tests.support.runs import SCRIPTS

SMALL: Any = SimpleNamespace(height=96, width=96)
LARGE: Any = SimpleNamespace(height=640, width=368)


@pytest.fixture(autouse=True)
def _four_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("volumes", "processes", "expected"),
    [([SMALL], 1, 1), ([SMALL, LARGE], 1, 4), ([LARGE], 2, 2), ([LARGE], 8, 1), ([], 1, 1)],
)
def test_large_images_take_all_cores_and_small_ones_one(
    volumes: list[Any], processes: int, expected: int
) -> None:
    assert set_threads(volumes, processes=processes) == torch.get_num_threads() == expected


def test_the_users_number_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set_threads([SMALL], count=3) == torch.get_num_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert set_threads([LARGE]) == 3
    assert set_threads([LARGE], count=2) == torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 4),
        ({"cpu.max": "max 100000\n"}, 4),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "800000 100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
    ],
)
def test_a_containers_share_of_the_cores_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    (tmp_path / "cpu").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(threads, "CGROUP", tmp_path)
    assert threads.usable_cores() == expected
    assert set_threads([LARGE]) == expected


def test_on_a_cpu_pairs_are_split_between_two_processes_if_nothing_says_otherwise(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def split(**changes: Any) -> tuple[int | None, bool]:
        found = split_on_cores(replace(settings, **{"paired": True, **changes}))
        return found.nproc, found.split_pairs

    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert split() == (2, True)
    assert split(device="auto") == (2, True)
    assert split(nproc=1) == (1, False)
    assert split(nproc=2) == (2, False)
    assert split(paired=False) == (1, False)
    assert split(device="cuda") == (1, False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert split(device="auto") == (1, False)
    for own in (
        {"WORLD_SIZE": "1"},
        {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
    ):
        monkeypatch.setattr(os, "environ", own)
        assert split() == (None, False)
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert split() == (1, False)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, "5000"),
        ({"GOMP_SPINCOUNT": "77"}, "77"),
        ({"OMP_WAIT_POLICY": "passive"}, "0"),
    ],
)
def test_threads_that_wait_for_others_soon_sleep_unless_the_user_wants_otherwise(
    own: dict[str, str], expected: str
) -> None:
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", "import banding_removal.command_line"],
        env={**kept, **own, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
    )
    # As libgomp has read it; there may be several copies of it, which numpy or scipy load.
    assert set(re.findall("GOMP_SPINCOUNT = '(.*)'", done.stderr)) == {expected}


def test_no_script_loads_torch_before_the_package_that_says_how_its_threads_wait() -> None:
    for script in SCRIPTS.glob("*.py"):
        imports = re.findall(r"^(?:import|from) (\w+)", script.read_text(), flags=re.MULTILINE)
        foreign = [name for name in imports if name not in sys.stdlib_module_names]
        assert foreign[0] == "banding_removal", script
