import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from banding_removal.config.recipes import DIRECT
from banding_removal.data.phantom.files import write_dataset
from banding_removal.errors import ConfigError
from benchmarks import efficacy, efficacy_report, maps, probe_regions, provoked_failures
from benchmarks.efficacy import BEFORE, Efficacy
from benchmarks.efficacy_recipes import SIZES
from benchmarks.efficacy_report import AIMS, Report, pairs_of, read_rows


def test_seeds_are_trained_and_judged_once_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "efficacy"
    words = [f"folder={folder}", "size=tiny", "volume_count=2", "probe=false", "volumes=final"]
    words += ["recipes=[control,direct]", "seeds=[0]", "epochs=2"]
    efficacy.main(words)
    rows = folder / "rows" / "tiny-0.jsonl"
    first = rows.read_text()
    assert [json.loads(line)["recipe"] for line in first.splitlines()] == [
        BEFORE,
        "control",
        "direct",
    ]
    steps = {json.loads(line)["recipe"]: json.loads(line)["steps"] for line in first.splitlines()}
    assert steps["control"] == steps["direct"]  # equal compute
    assert steps["control"] == steps[BEFORE] == 2 * 2 * SIZES["tiny"].phantom.slices
    efficacy.main(words)
    assert rows.read_text() == first
    assert "seed 0: complete" in capsys.readouterr().out

    run = folder / "tiny-0" / "stage_1"
    learnt, plain = maps.shares_outside(run)
    assert 0 < plain < learnt < 1
    maps.main([f"runs=[{run}]"])
    assert f"{learnt:.3f}" in capsys.readouterr().out

    volumes = folder / "final-tiny" / "multicoil_val"
    words = [f"sets={{before: {run}}}", f"volumes={volumes}", f"logs={tmp_path}", "steps=2"]
    probe_regions.main(words)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("before") and line.count("[") == 3

    words = [f"start={run}", f"logs={tmp_path / 'provoked'}", "epochs=1", "epoch_fraction=1"]
    provoked_failures.main([*words, "failures=[no number]"])
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("no number") and " ended " in line and "step 1: " in line
    monkeypatch.setitem(provoked_failures.FAILURES, "no number", (DIRECT, "loss is nan"))
    with pytest.raises(SystemExit, match="not reported as they should be: no number"):
        provoked_failures.main([*words, "failures=[no number]"])

    output = tmp_path / "results"
    efficacy_report.main([f"folder={folder}", "size=tiny", f"output={output}", "name=tiny"])
    table = (output / "tiny.md").read_text()
    assert "| direct | 1 |" in table
    assert all(name in table for name in AIMS)
    assert (output / "tiny.png").stat().st_size > 10_000
    pairs = pairs_of(read_rows(Report(folder=folder, size="tiny")), "control")
    (control,) = pairs["control"]
    assert control.change("ssim") == 0


def test_seeds_stop_in_time_and_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "efficacy"
    words = [f"folder={folder}", "size=tiny", "volume_count=1", "probe=false", "recipes=[control]"]
    seconds = 2.0
    log = folder / "tiny-0" / "stage_1" / "log.txt"
    while not log.exists() or "stopped by SIGTERM after step" not in log.read_text():
        seconds += 1
        with pytest.raises(SystemExit):
            efficacy.main([*words, f"minutes={seconds / 60}"])
        assert "stopped, to go on with the same command" in capsys.readouterr().out
    assert not (folder / "rows" / "tiny-0.jsonl").exists()
    efficacy.main([*words, "minutes=5"])
    assert len((folder / "rows" / "tiny-0.jsonl").read_text().splitlines()) == 2


def test_making_the_data_counts_towards_the_minutes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def slow(*args: Any, **named: Any) -> list[Path]:
        clock[0] += 1000
        return write_dataset(*args, **named)

    monkeypatch.setattr(efficacy, "write_dataset", slow)
    monkeypatch.setattr(efficacy, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    with pytest.raises(SystemExit):
        efficacy.main([f"folder={tmp_path}", "size=tiny", "volume_count=1", "minutes=10"])
    assert "stopped, to go on with the same command" in capsys.readouterr().out


def test_what_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none of control"):
        Efficacy(recipes=("magic",))
    with pytest.raises(ConfigError, match="must be positive"):
        Efficacy(epochs=0)
    with pytest.raises(ConfigError, match="size 7"):
        Efficacy(size="7")
    with pytest.raises(ConfigError, match="name runs"):
        maps.main([])
    with pytest.raises(ConfigError, match="name one set"):
        probe_regions.main([])
    with pytest.raises(ConfigError, match="names a run of stage 1"):
        provoked_failures.main([])
    with pytest.raises(ConfigError, match="magic: none of none, "):
        provoked_failures.main(["failures=[magic]"])
    with pytest.raises(ConfigError, match="has no rows"):
        read_rows(Report(folder=tmp_path))
