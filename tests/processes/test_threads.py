"""The number of threads on a CPU."""

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from banding_removal.processes.threads import set_threads

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
