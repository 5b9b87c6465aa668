"""Faults: a disk that is full or read-only, folders that are taken away, damaged checkpoints."""

import errno
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import torch

from banding_removal.runs.checkpoint import find_checkpoint, list_checkpoints, load_checkpoint
from tests.faults.bench import Bench, Try
from tests.faults.ends import complete, expect_same_end, lost_steps, prepare, same_end, unharmed
from tests.faults.job import Job
from tests.faults.toy import EVERY, Toy, expect


class SmallDisk:
    """A file system of a few megabytes in memory, mounted on a folder in the `with` block."""

    def __init__(self, folder: Path, megabytes: int = 8) -> None:
        self.folder = folder
        self.megabytes = megabytes
        self.is_read_only = False

    @staticmethod
    def why_not() -> str:
        """Why it cannot be mounted here; empty if it can."""
        if shutil.which("mount") is None or os.geteuid() != 0:
            return "mounting a small file system needs root"
        place = Path(f"/tmp/faults-{uuid.uuid4().hex}")
        place.mkdir()
        try:
            with SmallDisk(place):
                return ""
        except subprocess.CalledProcessError as error:
            return f"mounting is not allowed here: {error.stderr.decode().strip()}"
        finally:
            place.rmdir()

    def __enter__(self) -> "SmallDisk":
        self.folder.mkdir(parents=True, exist_ok=True)
        _mount("-t", "tmpfs", "-o", f"size={self.megabytes}m", "tmpfs", str(self.folder))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.is_read_only:
            self.read_only(False)
        _umount("-R", str(self.folder))

    def fill(self, but: int = 0) -> None:
        """Fill the disk except for `but` bytes; a run may be writing meanwhile."""
        with (self.folder / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(2**12))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            file.truncate(max(0, file.tell() - but))

    def make_room(self) -> None:
        """Undo `fill`."""
        (self.folder / "filler").unlink()

    def read_only(self, yes: bool) -> None:
        """Make the file system read-only, or writable again."""
        if yes:
            # On another mount point: one with files open for writing cannot be made read-only.
            aside = self.folder.with_name(f"{self.folder.name}-read-only")
            aside.mkdir()
            _mount("--bind", str(self.folder), str(aside))
            _mount("-o", "remount,ro,bind", str(aside))
            _mount("--bind", str(aside), str(self.folder))
            _umount(str(aside))
            aside.rmdir()
        else:
            _umount("-l", str(self.folder))
        self.is_read_only = yes


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


def _umount(*words: str) -> None:
    subprocess.run(["umount", *words], check=True, capture_output=True)


WRITES: dict[str, tuple[str, ...]] = {
    "a checkpoint": ("log_every=100000",),
    "metrics": ("log_every=1", "checkpoint_every=null"),
    "log and curves": ("log_every=100000", "checkpoint_every=null"),
    "a grid": ("log_every=100000", "checkpoint_every=null", "grid_slices=4"),
    "the index": (),
}


def disk_full(bench: Bench, names: Sequence[str] = tuple(WRITES)) -> Iterator[Try]:
    """The disk is full when something is written; later, there is room again."""
    for name in names:
        toy = bench.fresh("disk")
        words = (*WRITES[name], "epochs=100000") if name != "the index" else WRITES[name]
        with SmallDisk(toy.logs) as disk:
            if toy.stage == 2:
                prepare(toy)
            if name == "the index":
                shutil.rmtree(toy.logs / "index", ignore_errors=True)
                disk.fill()
            with Job(toy, *words) as job:
                if name == "a grid":
                    grid, curves = toy.run / "grids" / "epoch001.png", toy.run / "curves.png"
                    job.wait_for(lambda: grid.exists() and toy.saved() > 0, what="grid")  # noqa: B023
                    disk.fill(but=(grid.stat().st_size + curves.stat().st_size) // 2)
                elif name != "the index":
                    job.wait_for(lambda: toy.saved() > 0 or _first(toy), what="checkpoint")  # noqa: B023
                    disk.fill()
                job.ends_with(2, "No space left on device.*logs")
            # Without checkpoints within an epoch, so that the intended file is the first to fail.
            lost = lost_steps(toy, limit=12 if "checkpoint_every=null" in words else EVERY)
            disk.make_room()
            _goes_on(toy, words)
        yield Try(fault=f"disk full: {name}", lost=lost)


def _first(toy: Toy) -> bool:
    return bool(list_checkpoints(toy.run)) and "training on" in toy.log


def _goes_on(toy: Toy, words: tuple[str, ...]) -> None:
    """Check that the same command goes on for some steps."""
    begun = toy.saved()
    with Job(toy, *words) as job:
        if "epochs=100000" in words:
            job.wait_for(lambda: toy.saved() > begun, what="step")
            job.send(signal.SIGTERM)
            job.ends_with(75)
        else:
            job.ends_with(0)


def read_only(bench: Bench) -> Iterator[Try]:
    """The logs folder is read-only, from the start or during a run."""
    toy = bench.fresh("read_only")
    with SmallDisk(toy.logs) as disk:
        prepare(toy)
        disk.read_only(True)
        with Job(toy) as job:
            job.ends_with(2, "Read-only file system.*logs")
        disk.read_only(False)
        yield Try(fault="logs folder read-only at the start")
        with Job(toy) as job:
            job.wait_for_step(3)
            disk.read_only(True)
            job.ends_with(2, "Error: .*Read-only file system.*logs")
        disk.read_only(False)
        lost = lost_steps(toy)
        same_end(toy)
    yield Try(fault="logs folder read-only during the run", lost=lost)


REMOVALS = ("the run's folder removed", "all logs removed", "the run's folder moved")


def removed(bench: Bench, names: Sequence[str] = REMOVALS) -> Iterator[Try]:
    """The run's folder, or all logs, are removed or moved away during the run."""
    for what in names:
        toy = bench.fresh("removed")
        with Job(toy) as job:
            job.wait_for_step(7)
            if what.endswith("moved"):
                os.replace(toy.run, toy.folder / "elsewhere")
            else:
                # Moved first: the run may write a file while the folder is being emptied.
                gone = toy.folder / "gone"
                os.replace(toy.logs if what.startswith("all") else toy.run, gone)
                shutil.rmtree(gone)
            job.ends_with(0)
        expect("was removed or moved" in toy.log, f"the log does not say so:\n{toy.log}")
        expect("the run is complete" in toy.log.splitlines()[-1], "the log does not end")
        expect((toy.logs / "run").resolve() == toy.run.resolve(), "logs/run is not the run")
        other = unharmed(toy)
        a, b = (load_checkpoint(find_checkpoint(one.run)) for one in (toy, other))
        same = all(torch.equal(value, b.predictor[key]) for key, value in a.predictor.items())
        expect(same and a.step == b.step, "other weights")
        yield Try(fault=f"{what} during the run")


DAMAGES = ("truncated", "flipped", "empty", "two flipped", "all truncated")


def damaged(bench: Bench, names: Sequence[str] = DAMAGES) -> Iterator[Try]:
    """The newest checkpoint, the newest two, or all are truncated, flipped or empty."""
    toy = bench.fresh("damaged")
    with Job(toy) as job:
        job.wait_for_step(12)
        job.kill()
    as_it_was = toy.folder / "as_it_was"
    shutil.copytree(toy.logs, as_it_was, symlinks=True)
    for how in names:
        shutil.rmtree(toy.logs)
        shutil.copytree(as_it_was, toy.logs, symlinks=True)
        before, found = toy.step(), list_checkpoints(toy.run)
        hit = {"two flipped": found[-2:], "all truncated": found}.get(how, found[-1:])
        for path in hit:
            damage(path, how.split()[-1])
        if how.startswith("all"):
            with Job(toy) as job:
                job.ends_with(2, "all .* checkpoints of .* are damaged", "move that folder away")
            expect(not (toy.logs / f"{toy.run.name}_2").exists(), "a new run was begun")
            lost = 0
        else:
            lost = lost_steps(toy, before, limit=EVERY * (1 + len(hit)))
            complete(toy)
            expect(f"{hit[-1].name} is damaged" in toy.log, "the log does not say so")
            expect_same_end(toy, unharmed(toy))
        yield Try(fault=f"checkpoint damaged: {how}", lost=lost)


def damage(path: Path, how: str) -> None:
    """Truncate a file, flip bits in its middle, or empty it."""
    content = path.read_bytes()
    middle = len(content) // 2
    # More than the padding between an archive's members, which is damaged without effect.
    flipped = bytes(byte ^ 0xFF for byte in content[middle : middle + 256])
    path.write_bytes(
        {
            "truncated": content[:middle],
            "flipped": content[:middle] + flipped + content[middle + 256 :],
            "empty": b"",
        }[how]
    )
