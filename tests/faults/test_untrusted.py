"""Checkpoints and settings from other sources: read as data or refused; no code in them runs."""

import copy
import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from banding_removal.command_line import settings_of
from banding_removal.config.overrides import from_plain, from_words, plain
from banding_removal.config.settings import REPOSITORY, Settings
from banding_removal.errors import CheckpointError, ConfigError
from banding_removal.runs.checkpoint import (
    Checkpoint,
    load_checkpoint,
    restore_random_state,
    save_checkpoint,
)
from banding_removal.runs.folder import latest_run
from banding_removal.runs.safe_load import RefusedError, fits, load_plain
from banding_removal.runs.weights import load_optimizer
from banding_removal.training.loop import train
from tests.faults.bounds import memory_below
from tests.support.checkpoints import Exploit, checkpoint_of, tiny_predictor

MEMORY = 256 << 20  # bytes that it may take to refuse a file


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def remade(
    archive: bytes,
    change: Callable[[str, bytes], bytes] | None = None,
    *,
    more: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """An archive written by `torch.save`, with members changed or added."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(archive)) as old,
        zipfile.ZipFile(buffer, "w", compression) as new,
    ):
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(name, content) if change else content)
        for name, content in (more or {}).items():
            new.writestr(name, content)
    return buffer.getvalue()


def with_pickle(pickled: bytes) -> bytes:
    return remade(saved({}), lambda name, old: pickled if name.endswith("data.pkl") else old)


def refusal(path: Path, content: bytes) -> str:
    """The message that refuses a file: one line that names it. Little memory is taken."""
    path.write_bytes(content)
    with (
        memory_below(MEMORY),
        pytest.raises(CheckpointError, match=rf"{path.name} is (refused|damaged)") as caught,
    ):
        load_checkpoint(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


# --- code ---


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(tmp_path: Path, protocol: int) -> None:
    victim = tmp_path / "victim"
    pickled = pickle.dumps({"predictor": Exploit(victim)}, protocol=protocol)
    assert "Python objects" in refusal(tmp_path / "evil.pt", with_pickle(pickled))
    assert not victim.exists()


@pytest.mark.parametrize("where", ["settings", "history", "predictor"])
def test_code_deep_in_what_is_a_checkpoint_otherwise_is_refused(tmp_path: Path, where: str) -> None:
    victim = tmp_path / "victim"
    content = {"format": 3, **vars(checkpoint_of(tiny_predictor(), 1))}
    content[where] = [Exploit(victim)] if where == "history" else {"a": Exploit(victim)}
    refusal(tmp_path / "evil.pt", saved(content))
    assert not victim.exists()


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02cos\nsystem\nX\x0a\x00\x00\x00touch evil\x85R.",
        b"\x80\x02c__builtin__\neval\nX\x01\x00\x00\x001\x85R.",
        b"(S'touch evil'\nios\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0atouch evil\x85R.",
        b"\x80\x02cbuiltins\nbytearray\nJ\x00\x94\x35\x77\x85R.",
        b"\x80\x02ctorch\nFloatTensor\nJ\x00\x94\x35\x77\x85R.",
        b"\x80\x02cfunctools\npartial\n.",
    ],
    ids=["system", "eval", "inst", "stack global", "two GB of bytes", "eight GB", "partial"],
)
def test_a_pickle_that_names_anything_but_tensors_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pickled: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "Python objects" in refusal(tmp_path / "evil.pt", with_pickle(pickled))
    assert not (tmp_path / "evil").exists()


def test_a_run_that_begins_from_a_malicious_checkpoint_ends_with_one_line(
    settings: Settings, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    evil = tmp_path / "evil.pt"
    evil.write_bytes(saved({"predictor": Exploit(victim)}))
    with pytest.raises(CheckpointError, match=r"evil\.pt is refused: it holds Python objects"):
        train(replace(settings, init_from=str(evil)))
    assert not victim.exists()
    assert not (settings.logs / "toy").exists()


def test_the_script_ends_with_status_2_and_no_traceback(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    folder = tmp_path / "logs" / "theirs" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "epoch001.pt").write_bytes(saved({"predictor": Exploit(victim)}))
    script = REPOSITORY / "scripts" / "pretrain.py"
    run = subprocess.run(
        [sys.executable, str(script), f"resume={folder.parent}", "device=cpu"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 2
    assert "epoch001.pt is refused: it holds Python objects" in run.stderr
    assert "Traceback" not in run.stderr
    assert not victim.exists()


# --- size ---


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    def inflate(name: str, old: bytes) -> bytes:
        return bytes(100 << 20) if name.endswith("data/0") else old

    archive = remade(saved({"a": torch.ones(9)}), inflate, compression=zipfile.ZIP_DEFLATED)
    assert len(archive) < 1 << 20
    path = tmp_path / "bomb.pt"
    path.write_bytes(archive)
    with memory_below(64 << 20), pytest.raises(CheckpointError, match="members are larger"):
        load_checkpoint(path)


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO(saved({}))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("archive/data/0", bytes(1 << 20))
        shared = archive.infolist()[-1]
        for number in range(1, 100):
            entry = copy.copy(shared)
            entry.filename = f"archive/data/{number}"
            archive.filelist.append(entry)
            archive.NameToInfo[entry.filename] = entry
    assert "members are larger" in refusal(tmp_path / "shared.pt", buffer.getvalue())


def test_an_archive_behind_a_pickle_is_refused(tmp_path: Path) -> None:
    # torch.load would read the pickle, and zipfile the archive.
    assert "not a zip archive" in refusal(tmp_path / "both.pt", b"\x80\x02}." + saved({}))


def test_the_format_of_old_files_is_read_as_data_only(tmp_path: Path) -> None:
    weights = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(3).half()}
    buffer = io.BytesIO()
    torch.save(weights, buffer, _use_new_zipfile_serialization=False)
    old = buffer.getvalue()
    loaded = load_plain(old)
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[key], value) for key, value in weights.items())
    for length in range(15, len(old), 11):
        assert "is damaged" in refusal(tmp_path / "cut.pt", old[:length])
    # A global in any of the five pickles, here in the list of keys at the end.
    keys = old.rindex(b"\x80\x02]")
    called = b"\x80\x02cos\ngetcwd\n)R."
    assert "'os getcwd'" in refusal(tmp_path / "keys.pt", old[:keys] + called + old[keys:])
    victim = tmp_path / "victim"
    buffer = io.BytesIO()
    torch.save([Exploit(victim)], buffer, _use_new_zipfile_serialization=False)
    assert "holds Python objects" in refusal(tmp_path / "code.pt", buffer.getvalue())
    assert not victim.exists()
    buffer = io.BytesIO()
    wide = torch.zeros(1).expand(10**12)
    torch.save({"a": wide}, buffer, _use_new_zipfile_serialization=False)
    assert "is larger than the file" in refusal(tmp_path / "wide.pt", buffer.getvalue())


def test_attributes_of_dictionaries_are_dropped() -> None:
    pickled = b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x05sb."
    assert type(load_plain(with_pickle(pickled))) is dict


def test_tensors_that_declare_more_than_the_file_has_are_refused(tmp_path: Path) -> None:
    for tensor in (torch.zeros(1).expand(10**12), torch.zeros(3, 1).expand(3, 10**11)):
        message = refusal(tmp_path / "wide.pt", saved({"a": [tensor]}))
        assert "is larger than the file" in message


def test_members_of_another_length_than_their_tensors_are_refused(tmp_path: Path) -> None:
    def cut(name: str, old: bytes) -> bytes:
        return old[:4] if name.endswith("data/0") else old

    assert "does not match" in refusal(tmp_path / "a.pt", remade(saved([torch.ones(9)]), cut))


@pytest.mark.parametrize("name", ["../../evil", "/evil", "archive/../../evil", "x\\..\\evil"])
def test_members_with_names_of_paths_are_never_written(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    path = folder / "names.pt"
    path.write_bytes(remade(saved({}), more={name: b"x"}))
    with pytest.raises(CheckpointError, match=r"names\.pt is "):
        load_checkpoint(path)
    assert [item for item in tmp_path.rglob("*") if item.is_file()] == [path]


def laughing() -> Any:
    value: Any = ["ha"]
    for _ in range(40):
        value = [value, value]
    return value


def circle() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize("make", [laughing, circle])
def test_containers_without_end_are_refused(tmp_path: Path, make: Callable[[], Any]) -> None:
    assert "without end" in refusal(tmp_path / "deep.pt", saved({"settings": make()}))


# --- types ---


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        3 + 4j,
        bytearray(b"abc"),
        {(1, 2): 3},
        torch.Size([1, 2]),
        torch.float32,
        torch.nn.Parameter(torch.ones(2)),
        torch.ones(3, 3).to_sparse(),
        torch.ones(3, device="meta"),
    ],
)
def test_whatever_is_not_plain_data_is_refused(value: Any) -> None:
    with pytest.raises(RefusedError):
        load_plain(saved({"a": [value]}))


def test_plain_data_are_read_as_they_were_saved() -> None:
    content = {"a": [1, 2.5, "x", None, True, (1, "b")], 3: OrderedDict(c={"d": torch.arange(5)})}
    read = load_plain(saved(content))
    assert read["a"] == content["a"]
    assert torch.equal(read[3]["c"]["d"], torch.arange(5))


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int, 3, True),
        (float, 3, "3"),
        (dict[str, Any], {"a": None}, {1: None}),
        (list[str], ["a"], ["a", 1]),
        (dict[str, Any] | None, None, []),
        (list[list[torch.Tensor]], [[torch.ones(1)]], [torch.ones(1)]),
    ],
)
def test_values_are_checked_against_type_hints(hint: Any, good: Any, bad: Any) -> None:
    assert fits(good, hint)
    assert not fits(bad, hint)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epoch", "1"),
        ("epoch", True),
        ("sums", {"loss": "x"}),
        ("predictor", [1]),
        ("rng", {"torch": 1}),
        ("history", [1]),
        ("settings", "epochs: 3"),
        ("volumes", {"training": "a.h5"}),
        ("replay", [torch.ones(2)]),
    ],
)
def test_a_part_of_another_type_is_named(tmp_path: Path, name: str, value: Any) -> None:
    content = {"format": 3, **vars(checkpoint_of(tiny_predictor(), 1)), name: value}
    message = refusal(tmp_path / "odd.pt", saved(content))
    assert f"wrong type of {name}" in message


def test_optimiser_states_of_other_parameters_are_refused(tmp_path: Path) -> None:
    small, large = (torch.nn.Linear(n, n) for n in (2, 3))
    of_large = torch.optim.Adam(large.parameters())
    sum(p.sum() for p in large.parameters()).backward()  # type: ignore[union-attr]
    of_large.step()
    states: list[dict[str, Any]] = [{}, {"state": {}, "param_groups": []}, of_large.state_dict()]
    for state in states:
        with pytest.raises(CheckpointError, match=r"some\.pt: the optimiser's state does not fit"):
            load_optimizer(torch.optim.Adam(small.parameters()), state, Path("some.pt"))


@pytest.mark.parametrize("state", [{}, {"torch": 3}, {"torch": torch.ones(3)}])
def test_an_invalid_random_state_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="random state"):
        restore_random_state(state)


# --- settings ---


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../outside"},
        {"name": "/outside"},
        {"name": "a\nb"},
        {"name": "a\x00b"},
        {"data_path": "${oc.env:HOME}"},
        {"lr": "${lr}"},
        {"accelerations": {}},
        {"epochs": 10**400},
        {"seed": 2**63},
        {"train_filter": {"coils": [1]}},
        {"gone": 1},
        {"lr": float("nan")},
    ],
)
def test_invalid_settings_in_a_checkpoint_are_refused_and_the_checkpoint_is_named(
    change: dict[str, Any],
) -> None:
    with pytest.raises(ConfigError, match=r"^some\.pt") as caught:
        from_plain({**plain(Settings()), **change}, Path("some.pt"))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "word",
    [
        "[=3",
        "accelerations[0]=3",
        "accelerations.0=3",
        "lr=!!python/object/apply:os.system [ls]",
        "lr=&a [*a]",
        f"lr={'[' * 3000}",
        f"epochs={'9' * 5000}",
        "seed=99999999999999999999",
        "resume=~nobody_of_this_name/x",
        "name=a\x1b[31mb",
    ],
)
def test_a_word_that_is_not_valid_yaml_is_a_config_error(word: str) -> None:
    with pytest.raises(ConfigError):
        from_words(Settings(), [word])


def test_a_resumed_run_writes_where_it_lies_whatever_its_settings_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    theirs = plain(replace(Settings(), logs=outside, name="theirs"))
    run = tmp_path / "logs" / "theirs"
    checkpoint: Checkpoint = replace(checkpoint_of(tiny_predictor(), 1), settings=theirs)
    save_checkpoint(run, checkpoint, keep=0)
    monkeypatch.setattr(sys, "argv", ["pretrain.py"])
    assert settings_of(Settings(), [f"resume={run}"]).logs == tmp_path / "logs"
    assert settings_of(Settings(), [f"resume={run}", f"logs={outside}"]).logs == outside


@pytest.mark.parametrize("name", ["a**", "a[", "*", "../x"])
def test_a_run_name_is_not_a_glob_pattern(tmp_path: Path, name: str) -> None:
    (tmp_path / "abc").mkdir()
    (tmp_path / "abc" / "log.txt").touch()
    assert latest_run(tmp_path, name) is None
    assert latest_run(tmp_path, "abc") == tmp_path / "abc"
