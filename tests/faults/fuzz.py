"""Thousands of mutated files and settings are given to the code that reads them.

    python -m tests.faults.fuzz                          # 12,000 cases, a few minutes
    python -m tests.faults.fuzz cases=0.1 seed=7         # a tenth of them, with another seed
    python -m tests.faults.fuzz kind=structure only=412  # one case, in this process

Files are read completely: volumes are indexed and their slices and targets loaded, reconstructions
are checked and read, checkpoints are loaded into a model. Each case must end as *read* or as
*refused*, with one of the project's own errors that names the file; anything else is a finding. A
checkpoint with changed bytes may only be read if its content is unchanged. Batches run in child
processes with bounded memory, so that a crash or hang of a library ends one case only. A file that
causes one is then given to the function that reads such files first, in a subprocess, which must
refuse it.
"""

import io
import logging
import multiprocessing
import resource
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator

from banding_removal.command_line import user_errors
from banding_removal.config.overrides import describe, from_plain, from_words, plain
from banding_removal.config.settings import Settings
from banding_removal.data.dataset import SliceDataset
from banding_removal.data.index import read_volumes
from banding_removal.data.masks import MaskSampler
from banding_removal.data.volume import VolumeError, read_volume
from banding_removal.errors import CheckpointError, ConfigError
from banding_removal.evaluation.image_files import shape_of_file, slice_of_file
from banding_removal.evaluation.image_sets import reference_volumes
from banding_removal.model.predictor import Predictor
from banding_removal.reconstruction.files import Origin, difference, differences
from banding_removal.runs.checkpoint import (
    Checkpoint,
    load_checkpoint,
    random_state,
    save_checkpoint,
)
from banding_removal.runs.weights import load_optimizer, load_weights
from tests.faults import mutations
from tests.support.fastmri_files import write_volume

CASES = {
    "volume bytes": 2500,
    "volume truncated": 1000,
    "volume blocks": 1500,
    "volume structure": 2500,
    "volume header": 1000,
    "reconstruction bytes": 500,
    "reconstruction structure": 500,
    "checkpoint bytes": 300,
    "checkpoint pickle": 700,
    "checkpoint values": 700,
    "words": 1000,
}
BATCH = 250  # cases of one child process
PATIENCE = 1.0  # seconds of CPU time for one case
MEMORY = 1 << 30  # bytes that a child may allocate
MOST_SLICES = 8
ENDS = {
    "read": "read",
    "refused": "refused with the file named",
    "refused in the subprocess": "refused after HDF5 hung or crashed in a subprocess",
    **{end: end for end in ("other exception", "crash", "hang")},
}


@dataclass(frozen=True, kw_only=True)
class FuzzSettings:
    """How many cases, and of which kinds."""

    seed: int = 0
    cases: float = 1.0  # factor for the numbers in CASES
    kind: str | None = None  # only kinds whose name contains this
    only: int | None = None  # only this case of each kind, in this process


@dataclass(kw_only=True)
class Row:
    """How the cases of one kind ended."""

    kind: str
    counts: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)  # one line each
    memory: int = 0  # bytes, the most that a child allocated


# --- the files that are mutated ---


@dataclass(frozen=True, kw_only=True)
class Material:
    """Intact files, made once."""

    folder: Path
    volumes: list[bytes]
    reconstruction: bytes
    checkpoint: Path
    archive: bytes  # its content


def make_material(folder: Path) -> Material:
    """Small volumes of several layouts, a reconstruction and a checkpoint."""
    volumes = []
    small: dict[str, Any] = {"slices": 2, "size": (16, 14), "target_size": (12, 12)}
    for options in (
        {"coils": 2},
        {"coils": None},
        {"coils": 2, "drop": ("max",)},
        {"coils": 2, "mask": np.arange(14) % 2 == 0, "with_target": False},
    ):
        path = write_volume(folder / "sound.h5", acquired=(1, 12), **small, **options)
        read_volume(path)
        volumes.append(path.read_bytes())
        volumes.append(mutations.rewrite(path.read_bytes(), folder))
    write_volume(folder / "other.h5", **small, coils=2)
    model = Predictor(cascades=1, chans=2, pools=1, sens_chans=2)
    optimizer = torch.optim.Adam(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    content: dict[str, Any] = {
        **{"epoch": 1, "step": 10, "batches": 0, "sums": {}, "start": {}, "events": []},
        **{"predictor": model.state_dict(), "optimizer": optimizer.state_dict()},
        **{"adversary": None, "adversary_optimizer": None, "rng": [random_state()]},
        **{"history": [{"epoch": 1, "val_ssim": 0.5}], "settings": plain(Settings())},
        "volumes": {"training": ["a.h5"], "validation": ["b.h5"]},
    }
    checkpoint = save_checkpoint(folder, Checkpoint(**content), keep=0)
    return Material(
        folder=folder,
        volumes=volumes,
        reconstruction=mutations.reconstruction(folder),
        checkpoint=checkpoint,
        archive=checkpoint.read_bytes(),
    )


# --- cases ---


def run_case(kind: str, number: int, seed: int, material: Material) -> None:
    """Make a case and read it.

    Raises:
        VolumeError, CheckpointError, ConfigError: it is refused.
    """
    rng = _generator(kind, number, seed)
    what, _, how = kind.partition(" ")
    if what == "words":
        keys = [line.partition(":")[0] for line in describe(Settings())]
        count = int(rng.integers(1, 4))
        from_words(Settings(), [mutations.odd_word(keys, rng) for _ in range(count)])
        return
    if what == "checkpoint":
        path = _mutated_checkpoint(how, rng, material)
        _read_checkpoint(path)
        if how == "bytes":
            assert _saved_again(path) == _saved_again(material.checkpoint), "other content"
        return
    path = mutated_file(kind, number, seed, material)
    try:
        (_read_volume if what == "volume" else _read_reconstruction)(path)
    finally:
        path.unlink()


def mutated_file(kind: str, number: int, seed: int, material: Material) -> Path:
    """The HDF5 file of a case."""
    rng = _generator(kind, number, seed)
    what, _, how = kind.partition(" ")
    sound = material.volumes if what == "volume" else [material.reconstruction]
    path = material.folder / f"case{number}.h5"
    path.write_bytes(_mutate(how, sound[rng.integers(len(sound))], rng, material.folder))
    return path


def _generator(kind: str, number: int, seed: int) -> Generator:
    return np.random.default_rng([seed, list(CASES).index(kind), number])


def _mutate(how: str, content: bytes, rng: Generator, folder: Path) -> bytes:
    if how in ("structure", "header"):
        change = {"structure": mutations.change_structure, "header": mutations.change_header}
        return change[how](content, rng, folder)
    of_bytes: dict[str, Callable[[bytes, Generator], bytes]] = {
        "bytes": mutations.flip_bytes,
        "truncated": mutations.truncate,
        "blocks": mutations.swap_blocks,
    }
    return of_bytes[how](content, rng)


def _mutated_checkpoint(how: str, rng: Generator, material: Material) -> Path:
    path = material.folder / "mutated.pt"
    if how == "bytes":
        path.write_bytes(mutations.flip_bytes(material.archive, rng))
    elif how == "pickle":
        path.write_bytes(mutations.change_pickle(material.archive, rng))
    else:
        path.write_bytes(mutations.change_content(material.archive, rng))
    return path


def _read_volume(path: Path) -> None:
    volume = read_volume(path)
    masks = MaskSampler(kind="magic", accelerations=(2,), acs=(2,))
    try:
        masks.check(volume.width)
    except ValueError as error:  # as wherever volumes are chosen
        raise VolumeError(f"{path}: {error}") from error
    dataset = SliceDataset([volume], masks, seed=0, require_target=False)
    try:
        for index in range(min(MOST_SLICES, len(dataset))):
            _ = dataset[index].masked_kspace
        if volume.target_key is not None:
            dataset.targets(0)
            reference_volumes([volume])
    finally:
        dataset.close()


def _read_reconstruction(path: Path) -> None:
    shape = shape_of_file(path)
    for index in range(min(MOST_SLICES, shape[0])):
        slice_of_file(path, index)
    why = difference(path, _origin(), shape)
    if why is not None and "cannot be read" in why:
        raise VolumeError(f"{path} {why}")


def _origin() -> Origin:
    attributes: dict[str, Any] = mutations.ORIGIN
    return Origin(**attributes)


def _read_checkpoint(path: Path) -> None:
    checkpoint = load_checkpoint(path)
    from_plain(checkpoint.settings, path)
    model = Predictor(cascades=1, chans=2, pools=1, sens_chans=2)
    load_weights(model, checkpoint.predictor, path)
    load_optimizer(torch.optim.Adam(model.parameters()), checkpoint.optimizer, path)


def _saved_again(path: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(vars(load_checkpoint(path)), buffer)
    return buffer.getvalue()


def outcome(kind: str, number: int, seed: int, material: Material) -> tuple[str, str]:
    """One of "read", "refused" and "other exception"; and a description of the last."""
    try:
        run_case(kind, number, seed, material)
    except (VolumeError, CheckpointError, ConfigError) as error:
        starved = isinstance(error.__cause__, MemoryError)
        named = kind == "words" or any(s in str(error) for s in (f"case{number}.h5", "mutated.pt"))
        if named and not starved:
            return "refused", ""
        return "other exception", f"{'out of memory' if starved else 'not named'}: {error}"
    except Exception as error:  # noqa: BLE001  any other exception is a finding
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        return "other exception", f"{type(error).__name__} at {place}: {error}"
    return "read", ""


# --- batches ---


def _in_child(pipe: Connection, kind: str, numbers: range, seed: int, material: Material) -> None:
    """Run a batch; send the outcome of each case and the memory taken through the pipe."""
    logging.disable()
    start = _kilobytes("VmRSS") * 1024
    limit = _kilobytes("VmData") * 1024 + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    for number in numbers:
        signal.setitimer(signal.ITIMER_PROF, PATIENCE)
        result = outcome(kind, number, seed, material)
        pipe.send((*result, max(0, _kilobytes("VmHWM") * 1024 - start)))
    pipe.close()


def _kilobytes(key: str) -> int:
    """A value in /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def run_kind(kind: str, count: int, seed: int, material: Material) -> Row:
    """Run all cases of a kind in child processes, with a new one after a crash or hang."""
    row = Row(kind=kind)
    context = multiprocessing.get_context("fork")
    next_case = 0
    while next_case < count:
        ours, theirs = context.Pipe(duplex=False)
        numbers = range(next_case, min(count, next_case + BATCH))
        child = context.Process(target=_in_child, args=(theirs, kind, numbers, seed, material))
        child.start()
        theirs.close()
        ended = ""
        while next_case < numbers.stop and ended not in ("crash", "hang"):
            try:
                ended, words, memory = ours.recv()
            except EOFError:
                child.join()
                ended = "hang" if child.exitcode == -signal.SIGPROF else "crash"
                words, memory = f"the process ended with {child.exitcode}", 0
            lost = ended in ("crash", "hang")
            named = lost and _refused_in_subprocess(kind, next_case, seed, material)
            row.counts["refused in the subprocess" if named else ended] += 1
            row.memory = max(row.memory, memory)
            if ended not in ("read", "refused") and not named:
                row.findings.append(
                    f"{kind}, seed {seed}, case {next_case}: {ended}: {words[:300]}"
                )
            next_case += 1
        child.join()
        ours.close()
    return row


def _refused_in_subprocess(kind: str, number: int, seed: int, material: Material) -> bool:
    """Whether a file that crashes or hangs its reader is refused by the one in a subprocess."""
    if not kind.startswith(("volume", "reconstruction")):
        return False
    path = mutated_file(kind, number, seed, material)
    found: object
    if kind.startswith("volume"):
        (found,) = read_volumes([path], PATIENCE)
    else:
        (found,) = differences([(path, _origin(), (2, 12, 12))], PATIENCE)
    path.unlink()
    return isinstance(found, VolumeError | str)


def fuzz(settings: FuzzSettings) -> Iterator[Row]:
    """Run the cases that the settings describe, one kind after the other.

    Raises:
        ConfigError: no kind has such a name.
    """
    kinds = [kind for kind in CASES if settings.kind is None or settings.kind in kind]
    if not kinds:
        raise ConfigError(f"kind={settings.kind}: name a part of one of {', '.join(CASES)}")
    with tempfile.TemporaryDirectory() as name:
        material = make_material(Path(name))
        for kind in kinds:
            if settings.only is not None:
                run_case(kind, settings.only, settings.seed, material)
                continue
            count = max(1, round(settings.cases * CASES[kind]))
            yield run_kind(kind, count, settings.seed, material)


def line_of(row: Row) -> str:
    """A line of the table."""
    counts = [f"{row.counts[end]:{len(title)}}" for end, title in ENDS.items()]
    cases, memory = row.counts.total(), row.memory / 1e6
    return f"{row.kind:25} | {cases:5} | {' | '.join(counts)} | {memory:16.0f}"


def main(settings: FuzzSettings) -> None:
    """Print the table; the exit status is 1 if there are findings."""
    total = Row(kind="all")
    print(f"{'kind':25} | cases | {' | '.join(ENDS.values())} | peak memory (MB)", flush=True)
    for row in fuzz(settings):
        total.counts += row.counts
        total.findings += row.findings
        total.memory = max(total.memory, row.memory)
        print("\n".join([line_of(row), *row.findings]), flush=True)
    print(line_of(total))
    sys.exit(bool(total.findings))


if __name__ == "__main__":
    with user_errors():
        main(from_words(FuzzSettings(), sys.argv[1:]))
