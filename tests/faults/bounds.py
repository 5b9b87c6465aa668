"""A bound on the memory that a test may take."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def kilobytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


@contextmanager
def memory_below(most: int) -> Iterator[None]:
    """Check that memory grows by less than `most` bytes at any time in the `with` block."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak (VmHWM)
    before = kilobytes("VmRSS")
    yield
    taken = 1024 * (kilobytes("VmHWM") - before)
    assert taken < most, f"{taken / 1e6:.0f} MB were taken"
