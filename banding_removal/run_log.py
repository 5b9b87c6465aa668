"""What a run says: console, log.txt, metrics.jsonl and TensorBoard."""

import json
import logging
import math
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from logging.handlers import MemoryHandler
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm.contrib.logging import logging_redirect_tqdm

from banding_removal.checkpoint import atomic_write
from banding_removal.stopping import Stopped

log = logging.getLogger(__name__)


class MetricsWriter:
    """Figures of a run, one JSON object a line, and the same in TensorBoard's files."""

    def __init__(self, folder: Path, after: int = 0) -> None:
        """Go on after a step; what an interrupted run wrote beyond it is dropped, to come again."""
        path = folder / "metrics.jsonl"
        if path.exists():
            _cut(path, after)
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=after + 1)

    def write(self, kind: str, *, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Add a line. A figure that is not finite is written as null, which JSON can hold."""
        row = {key: value if math.isfinite(value) else None for key, value in values.items()}
        line = {"kind": kind, "epoch": epoch, "step": step, **row}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()  # a run that is killed keeps what it wrote
        for key, value in values.items():
            self._board.add_scalar(f"{kind}/{key}", value, step)

    def close(self) -> None:
        """Write everything out."""
        self._file.close()
        self._board.close()


def _cut(path: Path, last_step: int) -> None:
    """Keep the whole lines up to a step."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("}\n")]
    kept = [line for line in whole if json.loads(line)["step"] <= last_step]
    if len(kept) < len(lines):
        atomic_write(path, "".join(kept).encode())


@contextmanager
def early_records() -> Iterator[list[logging.LogRecord]]:
    """Collect log records while there is no folder yet, for `logging_to` to begin with."""
    root = logging.getLogger()
    level = root.level
    handler = MemoryHandler(capacity=sys.maxsize, flushLevel=sys.maxsize)
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield handler.buffer
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


@contextmanager
def logging_to(
    folder: Path, early: Sequence[logging.LogRecord] = (), rank: int = 0
) -> Iterator[None]:
    """Send log records to console and <folder>/log.txt, which ends with how the run ended.

    Args:
        folder: of the run.
        early: records to begin with.
        rank: of this process; all but the first write to log_rank<N>.txt alone.
    """
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    folder.mkdir(parents=True, exist_ok=True)  # another machine may not share it
    name = "log.txt" if rank == 0 else f"log_rank{rank}.txt"
    file = logging.FileHandler(folder / name, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(logging.Formatter("%(message)s"))
    if rank == 0:
        root.addHandler(console)
    root.addHandler(file)
    try:
        for record in early:
            root.handle(record)
        with logging_redirect_tqdm(loggers=[root]) if rank == 0 else nullcontext():
            yield
        log.info("the run is complete")
    except Stopped as stopped:
        log.warning("%s; the same command goes on from there", stopped)
        raise
    except KeyboardInterrupt:
        log.warning("the run was interrupted from the keyboard")
        raise
    except BaseException as error:
        # Into the file in full; the console shows the exception itself.
        root.removeHandler(console)
        log.exception("the run ended with %s", type(error).__name__)
        raise
    finally:
        root.removeHandler(console)
        root.removeHandler(file)
        root.setLevel(level)
        file.close()


def peak_memory_gb(device: torch.device) -> float:
    """Most memory used so far, GB: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes, but bytes on macOS.
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9
