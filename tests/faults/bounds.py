"""What a refusal may cost."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def kilobytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


@contextmanager
def memory_below(most: int) -> Iterator[None]:
    """This process takes no more than so many bytes at any time within the `with` block."""
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = kilobytes("VmRSS")
    yield
    taken = 1024 * (kilobytes("VmHWM") - before)
    assert taken < most, f"{taken / 1e6:.0f} MB were taken"
