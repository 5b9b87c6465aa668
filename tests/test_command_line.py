"""The words of a command line, also where IPython takes some of them for itself."""

import os
import sys
from pathlib import Path

import pytest

from banding_removal.command_line import typed_settings, typed_words, user_errors
from banding_removal.config.settings import Settings
from banding_removal.errors import ConfigError
from tests.support.runs import SCRIPTS

IPYTHON = ["/usr/bin/python3", "/usr/bin/ipython", "--no-banner"]


def type_in(monkeypatch: pytest.MonkeyPatch, typed: list[str], argv: list[str]) -> None:
    """What a script sees: all that was typed, and what its interpreter has left of it."""
    monkeypatch.setattr(sys, "orig_argv", typed)
    monkeypatch.setattr(sys, "argv", argv)


@pytest.mark.parametrize("script", ["scripts/train.py", "/home/me/scripts/train.py", "train.py"])
@pytest.mark.parametrize("option", ["--lr=1e-3", "-lr=1e-3", "--resume=logs/x", "--help"])
def test_an_option_that_ipython_took_is_refused_whatever_the_path_of_the_script(
    monkeypatch: pytest.MonkeyPatch, script: str, option: str
) -> None:
    typed = [*IPYTHON, script, "epochs=2", option]
    type_in(monkeypatch, typed, ["/home/me/scripts/train.py", "epochs=2"])
    with pytest.raises(ConfigError) as caught:
        typed_settings(Settings())
    assert f"write settings without dashes: {option.lstrip('-')}\n" in str(caught.value)
    assert "lr: float" in str(caught.value)


def test_a_setting_before_the_script_is_refused_and_options_of_ipython_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    argv = ["/home/me/scripts/train.py", "epochs=2"]
    type_in(monkeypatch, [*IPYTHON, "--matplotlib=agg", "scripts/train.py", "epochs=2"], argv)
    assert typed_words(Settings()) == ["epochs=2"]
    option = "--train_filter.magnet=3"
    type_in(monkeypatch, [*IPYTHON, option, "scripts/train.py", "epochs=2"], argv)
    assert typed_words(Settings()) == ["epochs=2", option]


def test_two_dashes_alone_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ["python", "scripts/train.py", "--", "lr=1e-3", "epochs=2"]
    type_in(monkeypatch, typed, typed[1:])
    assert typed_settings(Settings()).lr == 1e-3
    # IPython drops them.
    type_in(monkeypatch, [*IPYTHON, *typed[1:]], ["/home/me/scripts/train.py", *typed[3:]])
    assert typed_settings(Settings()).epochs == 2


@pytest.mark.parametrize("word", ["help", "--help"])
def test_help_lists_the_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    type_in(monkeypatch, ["python", "scripts/train.py", word], ["scripts/train.py", word])
    with pytest.raises(SystemExit) as ended:
        typed_settings(Settings())
    assert not ended.value.code
    assert "\nlr: float = 0.0003\n" in capsys.readouterr().out


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.stem)
def test_every_script_looks_for_options_that_ipython_took(script: Path) -> None:
    source = script.read_text()
    assert "argv" not in source
    assert any(name in source for name in ("typed_words(", "typed_settings(", "    run(SETTINGS"))


def test_streams_that_were_closed_lead_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with user_errors():
        for stream in (sys.stdout, sys.stderr):
            print("said to nobody", file=stream, flush=True)
            assert os.get_inheritable(stream.fileno())
            stream.close()
