import errno
import hashlib
import io
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from banding_removal.errors import CheckpointError
from banding_removal.files import NO_SYNC, atomic_write
from banding_removal.runs.checkpoint import (
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    restore_random_state,
    save_checkpoint,
)
from banding_removal.runs.weights import load_weights
from tests.support.checkpoints import Exploit, checkpoint_of, tiny_predictor


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    predictor = tiny_predictor()
    saved = checkpoint_of(predictor, 3)
    loaded = load_checkpoint(save_checkpoint(tmp_path, saved, keep=2))
    assert (loaded.epoch, loaded.step, loaded.settings) == (3, 30, {"lr": 1e-3})
    assert loaded.history == saved.history
    for key, value in predictor.state_dict().items():
        assert torch.equal(loaded.predictor[key], value)


def test_the_random_state_goes_on_where_it_was(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, checkpoint_of(tiny_predictor(), 1), keep=1)
    expected = torch.rand(4)
    torch.rand(7)
    restore_random_state(load_checkpoint(path).rng[0])
    assert torch.equal(torch.rand(4), expected)


def test_only_the_newest_are_kept_and_the_newest_is_found(tmp_path: Path) -> None:
    for epoch in (8, 9, 10, 11):
        save_checkpoint(tmp_path, checkpoint_of(tiny_predictor(), epoch), keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["epoch010.pt", "epoch011.pt"]
    assert find_checkpoint(tmp_path).name == "epoch011.pt"
    named = tmp_path / "checkpoints" / "epoch010.pt"
    assert find_checkpoint(named) == named


def test_within_an_epoch_the_newest_two_are_kept_beside_those_after_epochs(tmp_path: Path) -> None:
    def names_after(epoch: int, batches: int) -> list[str]:
        save_checkpoint(tmp_path, checkpoint_of(tiny_predictor(), epoch, batches), keep=1)
        return [path.stem for path in list_checkpoints(tmp_path)]

    assert names_after(0, 2) == ["epoch000_step000002"]
    assert names_after(0, 4) == ["epoch000_step000002", "epoch000_step000004"]
    assert names_after(1, 0) == ["epoch000_step000004", "epoch001"]
    assert names_after(1, 2) == ["epoch001", "epoch001_step000012"]
    assert names_after(1, 4) == ["epoch001", "epoch001_step000012", "epoch001_step000014"]
    assert names_after(1, 6) == ["epoch001", "epoch001_step000014", "epoch001_step000016"]
    assert names_after(2, 0) == ["epoch001_step000016", "epoch002"]


def test_none_is_removed_when_all_are_kept(tmp_path: Path) -> None:
    for epoch in (1, 2, 3, 4):
        save_checkpoint(tmp_path, checkpoint_of(tiny_predictor(), epoch), keep=0)
    assert len(list_checkpoints(tmp_path)) == 4


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "flipped"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    path = save_checkpoint(tmp_path, checkpoint_of(tiny_predictor(), 1), keep=1)
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(
        {
            "truncated": content[:half],
            "empty": b"",
            "text": b"not a checkpoint",
            "flipped": content[:-200] + bytes(200),
        }[damage]
    )
    with pytest.raises(CheckpointError, match=r"epoch001\.pt"):
        load_checkpoint(path)


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "one bit"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (
        save_checkpoint(tmp_path, checkpoint_of(tiny_predictor(), epoch), keep=1)
        for epoch in (1, 2)
    )
    content = second.read_bytes()
    with zipfile.ZipFile(second) as archive:
        middle = archive.getinfo("archive/data.pkl").header_offset + 200
    second.write_bytes(
        {
            "truncated": content[:middle],
            "empty": b"",
            "flipped": content[:middle] + bytes(100) + content[middle + 100 :],
            "one bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        }[damage]
    )
    assert find_checkpoint(tmp_path) == first
    assert "epoch002.pt is damaged" in caplog.text
    with pytest.raises(CheckpointError, match=r"epoch002\.pt"):
        load_checkpoint(second)
    first.write_bytes(b"")
    with pytest.raises(CheckpointError, match="all 2 checkpoints"):
        find_checkpoint(tmp_path)


def saved_again(path: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(vars(load_checkpoint(path)), buffer)
    return buffer.getvalue()


def test_every_damaged_bit_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, checkpoint_of(tiny_predictor(), 1), keep=1)
    content, expected = path.read_bytes(), saved_again(path)
    refused = 0
    for position in range(0, len(content), 23):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            assert saved_again(path) == expected
        except CheckpointError:
            refused += 1
    assert refused > len(content) / 23 / 2  # the rest is padding of the archive


def test_a_checkpoint_of_an_earlier_version_with_a_digest_as_its_comment_loads(
    tmp_path: Path,
) -> None:
    path = save_checkpoint(tmp_path, checkpoint_of(tiny_predictor(), 1), keep=1)
    content = path.read_bytes()[:-2] + struct.pack("<H", 71)  # length of the comment
    path.write_bytes(content + f"sha256:{hashlib.sha256(content).hexdigest()}".encode())
    assert load_checkpoint(path).epoch == 1
    assert find_checkpoint(tmp_path) == path


def test_torch_reads_a_checkpoint_as_any_other_file(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, checkpoint_of(tiny_predictor(), 1), keep=1)
    assert torch.load(path, weights_only=True)["epoch"] == 1


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_checkpoint_with_code_is_refused_and_nothing_runs(tmp_path: Path, how: str) -> None:
    path, victim = tmp_path / "evil.pt", tmp_path / "victim"
    if how == "pickle":
        path.write_bytes(pickle.dumps({"predictor": Exploit(victim)}, protocol=2))
    else:
        torch.save({"predictor": Exploit(victim)}, path)
    with pytest.raises(CheckpointError, match=r"evil\.pt is (refused|damaged)"):
        load_checkpoint(path)
    assert not victim.exists()


def test_another_projects_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"not a checkpoint of this .*holds: 'state_dict'"):
        load_checkpoint(tmp_path / "other.pt")


def test_weights_of_another_model_are_refused_with_the_keys_listed() -> None:
    weights = tiny_predictor(chans=4).state_dict()
    weights = {"extra": weights.pop("cascades.0.dc_weight"), **weights}
    with pytest.raises(CheckpointError) as caught:
        load_weights(tiny_predictor(chans=2), weights, Path("some.pt"))
    message = str(caught.value)
    assert "cascades.0.dc_weight: only in the model" in message
    assert "extra: only in the checkpoint" in message
    assert "float32 (4, 2, 3, 3) in the checkpoint, float32 (2, 2, 3, 3) in the model" in message
    assert "Check predictor (cascade, varnet, or package.module:Class" in message
    assert message.count("\n") == 6 and re.search(r"and \d+ more$", message)


def test_weights_of_another_precision_are_converted() -> None:
    weights = tiny_predictor().state_dict()
    model = tiny_predictor()
    load_weights(model, {key: value.double() for key, value in weights.items()}, Path("some.pt"))
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, weights[key])
    integers = {key: value.int() for key, value in weights.items()}
    with pytest.raises(CheckpointError, match=r"int32 .* in the checkpoint"):
        load_weights(model, integers, Path("some.pt"))


FILL_THE_DISK = """
import resource, signal, sys
from pathlib import Path
from banding_removal.runs.checkpoint import CheckpointError, save_checkpoint
from tests.support.checkpoints import checkpoint_of, tiny_predictor
# No file may grow beyond this: writing more fails as on a full disk.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    save_checkpoint(Path(sys.argv[1]), checkpoint_of(tiny_predictor(), 2), keep=1)
except CheckpointError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_previous_checkpoint_and_no_rubbish(tmp_path: Path) -> None:
    first = save_checkpoint(tmp_path, checkpoint_of(tiny_predictor(), 1), keep=1)
    before = first.read_bytes()
    run = subprocess.run(
        [sys.executable, "-c", FILL_THE_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert "cannot write" in run.stdout
    assert "Earlier checkpoints are intact" in run.stdout
    assert first.read_bytes() == before
    assert list(first.parent.iterdir()) == [first]


@pytest.mark.parametrize("number", NO_SYNC)
def test_a_file_system_that_cannot_sync_gets_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    for content in (b"old", b"new"):
        atomic_write(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == b"new"
    assert caplog.text.count("fsync") == 1
    number = errno.EIO  # a disk that fails is another matter
    with pytest.raises(OSError, match="Input/output"):
        atomic_write(tmp_path / "file", b"newer")


def test_an_atomic_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"old and long")
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
