"""Volumes that change during a run, and volumes that are not what they seem."""

import os
import re
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import h5py
import numpy as np
import pytest
from torch import Tensor

from banding_removal.config.settings import Settings
from banding_removal.data.dataset import SliceDataset
from banding_removal.data.masks import MaskSampler
from banding_removal.data.volume import Volume, VolumeError, read_volume
from banding_removal.evaluation.image_files import shape_of_file, slice_of_file
from banding_removal.evaluation.image_sets import reference_volumes
from banding_removal.evaluation.settings import EvaluateSettings, evaluate_files
from banding_removal.reconstruction.files import Origin, difference
from banding_removal.training.loop import train
from banding_removal.training.run import Run
from tests.faults.bounds import memory_below
from tests.faults.mutations import BOMB, ENTITY
from tests.support.fastmri_files import HEADER, make_kspace, write_volume
from tests.support.runs import weights_of

SHAPE = (4, 3, 32, 28)  # of the k-space that write_volume makes
TARGET = (4, 24, 24)
LONGEST = 600  # seconds for a test, before it counts as one that hangs
MEMORY = 256 << 20  # bytes that refusing a file may take at most

Change = Callable[[Path], object]


@pytest.fixture(autouse=True)
def hangs_fail() -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it hangs: {LONGEST} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(LONGEST)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# --- during a run ---


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


def replace_by_larger(path: Path) -> None:
    os.replace(write_volume(path.with_name("new"), slices=5, size=(32, 40)), path)


def replace_by_equal_size(path: Path) -> None:
    size = path.stat().st_size
    os.replace(write_volume(path.with_name("new"), slices=2, size=(32, 28), seed=77), path)
    assert path.stat().st_size == size


def put_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def spoil_unseen(path: Path) -> None:
    """NaN in every slice, with size and time as before."""
    times = path.stat()
    with h5py.File(path, locking=False) as file:
        begin, size = file["kspace"].id.get_offset(), file["kspace"].id.get_storage_size()
    with path.open("r+b") as content:  # past HDF5, which has the file open for reading
        content.seek(begin)
        content.write(np.full(size // 8, np.nan, np.complex64).tobytes())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


CHANGED = (
    r"slice [01]: the file was changed or removed after it was indexed: replace or remove the file"
)
CHANGES: dict[str, tuple[Change, str]] = {
    "truncated": (truncate, CHANGED),
    "deleted": (Path.unlink, CHANGED),
    "replaced": (replace_by_larger, CHANGED),
    "replaced by as many bytes": (replace_by_equal_size, CHANGED),
    "replaced by a pipe": (put_a_pipe, CHANGED),
    "made NaN": (spoil_unseen, r"k-space of slice [01] has NaN or Inf: replace or remove the file"),
}


def stage(number: int, settings: Settings) -> Settings:
    settings = replace(settings, epochs=2, grid_slices=0)
    if number == 1:
        return settings
    return replace(settings, stage="train", adversary="simple", adversary_chans=4, paired=False)


def change_after_epoch_1(monkeypatch: pytest.MonkeyPatch, path: Path, change: Change) -> None:
    """Let something happen to a file as soon as the first epoch is saved."""
    left, save = [change], Run.save

    def save_and_change(run: Run, *args: Any, **how: Any) -> None:
        save(run, *args, **how)
        if left and run.progress.epoch == 1:
            left.pop()(path)

    monkeypatch.setattr(Run, "save", save_and_change)


@pytest.fixture(scope="module")
def undisturbed() -> dict[int, dict[str, Tensor]]:
    """Weights at the end of runs that nothing happened to, by stage; filled when needed."""
    return {}


@pytest.mark.parametrize(
    ("number", "workers", "name"),
    [
        *((1, 0, name) for name in ("truncated", "replaced by a pipe", "made NaN")),
        *((1, 2, name) for name in ("deleted", "made NaN")),
        (2, 0, "replaced by as many bytes"),
        (2, 2, "replaced"),
    ],
)
def test_a_volume_that_changes_ends_the_run_which_goes_on_when_it_is_put_right(
    settings: Settings,
    undisturbed: dict[int, dict[str, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    number: int,
    workers: int,
    name: str,
) -> None:
    settings = replace(stage(number, settings), workers=workers)
    if number not in undisturbed:
        undisturbed[number] = weights_of(train(replace(settings, name="whole")))
    path = settings.data_path / "multicoil_train" / "file1.h5"
    shutil.copy2(path, tmp_path / "kept.h5")
    change, message = CHANGES[name]
    with monkeypatch.context() as during_the_run:
        change_after_epoch_1(during_the_run, path, change)
        with pytest.raises(VolumeError, match=rf"file1\.h5: {message}") as caught:
            train(settings)
    # Lets go of the loader now: the garbage collector would wait 5 s for its workers.
    traceback.clear_frames(caught.tb)
    folder = settings.logs / "toy"
    text = (folder / "log.txt").read_text()
    assert "the run ended with VolumeError" in text
    assert "file1.h5" in text

    path.unlink(missing_ok=True)
    shutil.copy2(tmp_path / "kept.h5", path)
    assert train(settings) == folder
    assert "resumed after epoch 1, step 6" in (folder / "log.txt").read_text()
    found = weights_of(folder)
    assert all((found[key] == value).all() for key, value in undisturbed[number].items())


def test_a_validation_volume_that_is_deleted_ends_the_run_with_its_name(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = settings.data_path / "multicoil_val" / "val1.h5"
    change_after_epoch_1(monkeypatch, path, Path.unlink)
    with pytest.raises(VolumeError, match=r"val1\.h5: .*changed or removed .*same command again"):
        train(stage(1, settings))
    assert "val1.h5" in (settings.logs / "toy" / "log.txt").read_text()


def test_a_run_goes_on_without_a_volume_that_stays_away_and_says_so(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = stage(1, settings)
    path = settings.data_path / "multicoil_train" / "file1.h5"
    with monkeypatch.context() as during_the_run:
        change_after_epoch_1(during_the_run, path, Path.unlink)
        with pytest.raises(VolumeError, match=r"file1\.h5"):
            train(settings)
    folder = train(settings)
    assert folder == settings.logs / "toy"
    text = (folder / "log.txt").read_text()
    assert "the training volumes are not those of the checkpoint: 0 new, 1 missing" in text
    assert text.rstrip().endswith("the run is complete")


# --- files that are not what they seem ---


def edit(path: Path, key: str, make: Callable[[h5py.File], object]) -> Path:
    """Something else in place of a dataset."""
    write_volume(path)
    with h5py.File(path, "r+") as file:
        if key in file:
            del file[key]
        make(file)
    return path


def link_outside(file: h5py.File, key: str, target: str) -> None:
    file[key] = h5py.ExternalLink(target, f"/{key}")


def link_through_a_group(file: h5py.File, key: str, target: str) -> None:
    file["away"] = h5py.ExternalLink(target, "/")
    file[key] = h5py.SoftLink(f"/away/{key}")


def external_storage(file: h5py.File, key: str, target: str) -> None:
    shape, dtype = (SHAPE, np.complex64) if key == "kspace" else (TARGET, np.float32)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    file.create_dataset(key, shape, dtype, external=[(target, 0, size)])


def virtual(file: h5py.File, key: str, target: str) -> None:
    shape, dtype = (SHAPE, np.complex64) if key == "kspace" else (TARGET, np.float32)
    layout = h5py.VirtualLayout(shape, dtype)
    layout[:] = h5py.VirtualSource(target, key, shape=shape, dtype=dtype)
    file.create_virtual_dataset(key, layout)


ELSEWHERE = [link_outside, link_through_a_group, external_storage, virtual]
KEYS = ["kspace", "reconstruction_rss"]


@pytest.mark.parametrize("make", ELSEWHERE)
@pytest.mark.parametrize("key", [*KEYS, "mask", "ismrmrd_header"])
@pytest.mark.parametrize("target", ["a volume", "a pipe"])
def test_data_that_lie_in_another_file_are_refused(
    tmp_path: Path, key: str, make: Callable[[h5py.File, str, str], None], target: str
) -> None:
    other = tmp_path / "outside" / "other.h5"
    if target == "a volume":
        write_volume(other, mask=np.ones(28, bool))
    else:
        other.parent.mkdir()
        os.mkfifo(other)  # whoever opens it waits for ever
    path = edit(tmp_path / "linked.h5", key, lambda file: make(file, key, str(other)))
    with pytest.raises(VolumeError, match=rf"linked\.h5: {key} .*, which is refused: put"):
        read_volume(path)


def test_a_link_within_the_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "soft.h5")
    with h5py.File(path, "r+") as file:
        file.move("kspace", "inside")
        file["kspace"] = h5py.SoftLink("/inside")
    with pytest.raises(VolumeError, match="kspace is a soft link, which is refused: put the data"):
        read_volume(path)


def as_indexed(path: Path, before: Volume) -> Volume:
    """The record of a file as it was, for whoever forges size and time."""
    stat = path.stat()
    return replace(before, bytes=stat.st_size, mtime_ns=stat.st_mtime_ns)


@pytest.mark.parametrize("make", ELSEWHERE)
@pytest.mark.parametrize("key", KEYS)
def test_a_link_that_is_put_there_after_indexing_is_refused_where_slices_are_read(
    tmp_path: Path, key: str, make: Callable[[h5py.File, str, str], None]
) -> None:
    other = write_volume(tmp_path / "outside" / "other.h5")
    before = read_volume(write_volume(tmp_path / "linked.h5"))
    path = edit(tmp_path / "linked.h5", key, lambda file: make(file, key, str(other)))
    volume = as_indexed(path, before)
    dataset = SliceDataset(
        [volume], MaskSampler(kind="magic", accelerations=(4,), acs=(4,)), seed=0
    )
    reads: list[Callable[[], object]] = [lambda: dataset[1]]
    if key != "kspace":
        reads += [lambda: dataset.targets(0), lambda: reference_volumes([volume])]
    for read in reads:
        with pytest.raises(VolumeError, match=rf"linked\.h5: .*{key} .*which is refused"):
            read()


@pytest.mark.parametrize("make", ELSEWHERE)
def test_reconstructions_that_lie_in_another_file_are_refused(
    tmp_path: Path, make: Callable[[h5py.File, str, str], None]
) -> None:
    other, path = tmp_path / "outside.h5", tmp_path / "x" / "linked.h5"
    path.parent.mkdir()
    with h5py.File(other, "w") as file:
        file["reconstruction"] = np.ones(TARGET, np.float32)
    with h5py.File(path, "w") as file:
        make(file, "reconstruction", str(other))
    for read in (shape_of_file, lambda path: slice_of_file(path, 0)):
        with pytest.raises(VolumeError, match=r"linked\.h5: .*reconstruction .*which is refused"):
            read(path)
    assert "which is refused" in str(difference(path, ORIGIN, TARGET))


ORIGIN = Origin(
    checkpoint="c",
    checkpoint_sha256="0",
    epoch=1,
    step=1,
    source="s",
    source_bytes=1,
    orientation="x",
    version="0",
)


def huge(file: h5py.File, key: str, **options: Any) -> None:
    dtype = np.complex64 if key == "kspace" else np.float32
    shape = (*SHAPE[:2], 2**20, 2**20) if key == "kspace" else (4, 2**20, 2**20)
    file.create_dataset(key, shape, dtype, **options)


def chunked(file: h5py.File, key: str) -> None:
    huge(file, key, chunks=(1,) * (len(SHAPE if key == "kspace" else TARGET) - 2) + (64, 64))


def compressed(file: h5py.File, key: str) -> None:
    shape = (4, 3, 1000, 1000) if key == "kspace" else (4, 1000, 1000)
    dtype = np.complex64 if key == "kspace" else np.float32
    file.create_dataset(key, data=np.zeros(shape, dtype), compression="gzip", chunks=True)


def in_part(file: h5py.File, key: str) -> None:
    shape, dtype = (SHAPE, np.complex64) if key == "kspace" else (TARGET, np.float32)
    made = file.create_dataset(key, shape, dtype, chunks=(1, *shape[1:]))
    made[:3] = 1


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (chunked, "was not written in full: 0 of"),
        (huge, r"declares \d+ bytes, .* stores 0"),
        (compressed, r"declares \d+ bytes, .* stores \d+"),
        (in_part, "was not written in full: 3 of 4 chunks"),
    ],
)
def test_data_that_are_declared_and_not_stored_are_refused_without_taking_memory(
    tmp_path: Path, key: str, make: Callable[[h5py.File, str], None], message: str
) -> None:
    path = edit(tmp_path / "huge.h5", key, lambda file: make(file, key))
    with h5py.File(path, "r+") as file:
        del file.attrs["max"]  # else the target would not be read at all
    with memory_below(MEMORY), pytest.raises(VolumeError, match=rf"huge\.h5: {key} {message}"):
        read_volume(path)


def text(value: object, **options: Any) -> Callable[[h5py.File], object]:
    return lambda file: file.create_dataset("ismrmrd_header", data=value, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (text(BOMB), "declares a document type"),
        (text(ENTITY), "declares a document type"),
        (text("x" * (2 << 20)), "has 2097152 bytes, more than"),
        (text(np.bytes_(b"x" * (2 << 20))), "has 2097152 bytes, more than"),
        (lambda file: file.create_dataset("ismrmrd_header", (), "S1000000000"), "stores 0"),
        (text(np.full(2 << 20, 120, np.uint8)), "has 2097152 bytes, more than"),
        (lambda file: file.create_dataset("ismrmrd_header", (2**40,), "u1", chunks=True), "0 of"),
    ],
    ids=["bomb", "entity", "long", "long, fixed", "huge", "long, bytes", "huge, bytes"],
)
def test_a_header_that_is_a_trap_is_refused_with_little_time_and_memory(
    tmp_path: Path, make: Callable[[h5py.File], object], message: str
) -> None:
    path = edit(tmp_path / "trap.h5", "ismrmrd_header", make)
    with (
        memory_below(MEMORY),
        pytest.raises(VolumeError, match=rf"trap\.h5: .*{message}") as caught,
    ):
        read_volume(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "make",
    [
        lambda file: file.create_dataset("ismrmrd_header", (2**40,), "S9", chunks=True),
        text([HEADER] * 9, dtype=h5py.string_dtype()),
        text(np.ones(3, np.complex64)),
        text(3),
    ],
    ids=["many", "list", "numbers", "number"],
)
def test_a_header_that_is_no_text_counts_as_not_given(
    tmp_path: Path, make: Callable[[h5py.File], object]
) -> None:
    path = edit(tmp_path / "odd.h5", "ismrmrd_header", make)
    with memory_below(MEMORY):
        volume = read_volume(path)
    assert (volume.scanner, volume.acquired) == ("unknown", None)
    ((kind, detail),) = volume.notes
    assert kind == "unclear_header"
    assert "not a byte string" in detail


def test_endless_nesting_in_a_header_takes_little_memory(tmp_path: Path) -> None:
    path = edit(tmp_path / "deep.h5", "ismrmrd_header", text("<a>" * 300_000))
    with memory_below(MEMORY):
        assert read_volume(path).scanner == "unknown"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max", "much"),
        ("max", [1.0, 2.0]),
        ("max", np.complex64(1)),
        ("max", h5py.Empty("f4")),
        ("acquisition", 3),
        ("acquisition", np.array(["a", "b"], dtype=object)),
        ("acquisition", h5py.Empty("S3")),
        ("acquisition", "x" * 60_000),
        ("acquisition", "line\nend"),
        ("acquisition", "\x1b[31mred"),
        ("acquisition", np.bytes_(b"\xff\xfe")),
    ],
)
def test_an_attribute_of_another_type_counts_as_not_given(
    tmp_path: Path, name: str, value: Any
) -> None:
    path = write_volume(tmp_path / "odd.h5", attrs={name: value})
    largest = read_volume(write_volume(tmp_path / "sound.h5")).data_range
    volume = read_volume(path)
    ((kind, detail),) = volume.notes
    assert (kind, volume.data_range) == ("unclear_attribute", largest)
    assert volume.acquisition == ("unknown" if name == "acquisition" else "CORPD_FBK")
    assert detail.startswith(f"the attribute {name} is ")
    assert detail.isprintable()
    assert len(detail) < 200


@pytest.mark.parametrize("name", ["max", "acquisition"])
def test_an_attribute_that_is_a_reference_is_not_read(tmp_path: Path, name: str) -> None:
    path = write_volume(tmp_path / "odd.h5")
    with h5py.File(path, "r+") as file:
        file.attrs[name] = file["kspace"].ref
    detail = f"the attribute {name} is object (), not a "
    assert [note[1][: len(detail)] for note in read_volume(path).notes] == [detail]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full(28, b"yes"), "expected a number"),
        (np.ones((28, 2), bool), r"shape \(28, 2\)"),
        (np.arange(5), r"shape \(5,\)"),
    ],
)
def test_a_mask_that_is_none_is_refused_where_one_is_needed(
    tmp_path: Path, mask: np.ndarray, message: str
) -> None:
    path = write_volume(tmp_path / "odd.h5", mask=mask)
    ((kind, detail),) = read_volume(path).notes
    assert kind == "unused_mask"
    assert re.search(message, detail)
    with h5py.File(path, "r+") as file:
        file["kspace"][..., 1::4] = 0
    with pytest.raises(VolumeError, match=rf"odd\.h5: .*{message}"):
        read_volume(path)


def test_a_mask_that_declares_terabytes_is_not_read(tmp_path: Path) -> None:
    path = edit(
        tmp_path / "odd.h5",
        "mask",
        lambda file: file.create_dataset("mask", (2**42,), bool, chunks=(1024,)),
    )
    with memory_below(MEMORY):
        assert [kind for kind, _ in read_volume(path).notes] == ["unused_mask"]


def test_a_target_without_pixels_is_refused(tmp_path: Path) -> None:
    path = edit(
        tmp_path / "odd.h5",
        "reconstruction_rss",
        lambda file: file.create_dataset("reconstruction_rss", (4, 0, 24), np.float32),
    )
    with pytest.raises(VolumeError, match=r"odd\.h5: reconstruction_rss is empty"):
        read_volume(path)


def test_a_pipe_in_place_of_a_volume_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.h5")
    with pytest.raises(VolumeError, match=r"pipe\.h5: it is not a regular file"):
        read_volume(tmp_path / "pipe.h5")


def test_a_reconstruction_with_attributes_of_any_type_is_told_from_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["reconstruction"] = np.ones(TARGET, np.float32)
        file.attrs["checkpoint_sha256"] = "0"
        file.attrs["source"] = np.ones(3)
        file.attrs["source_bytes"] = "many"
        file.attrs["epoch"] = h5py.Empty("f4")
    assert "was made from" in str(difference(path, ORIGIN, TARGET))


def test_a_reconstruction_that_declares_more_than_it_stores_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        huge(file, "reconstruction", chunks=(1, 64, 64))
    with pytest.raises(VolumeError, match=r"a\.h5: reconstruction was not written in full"):
        shape_of_file(path)


# --- names from files ---

HOSTILE = "../../$x_{ %s <b> | , ="


def everything_in(folder: Path, *, but: Path) -> dict[Path, int]:
    """Files and their times, of a folder without one of those in it."""
    found = (path for path in folder.rglob("*") if not path.is_relative_to(but))
    return {path: path.lstat().st_mtime_ns for path in found if not path.is_dir()}


def test_names_from_files_write_nothing_outside_the_run_and_break_nothing(
    settings: Settings, tmp_path: Path
) -> None:
    for part in ("train", "val"):
        for i in range(2):
            write_volume(
                settings.data_path / f"multicoil_{part}" / f"{part}_x{i}.h5",
                slices=2,
                kspace=make_kspace(2, 3, 32, 28, (2, 25), seed=i),
                scanner=HOSTILE.replace("<b>", ""),
                acquisition=HOSTILE,
            )
    before = everything_in(tmp_path, but=settings.logs)
    folder = train(replace(settings, epochs=1))
    evaluate_files(
        EvaluateSettings(
            sets={HOSTILE: folder},
            volumes=settings.data_path / "multicoil_val",
            output=settings.logs / "evaluation",
            logs=settings.logs,
            probe=False,
            device="cpu",
        )
    )
    assert everything_in(tmp_path, but=settings.logs) == before
