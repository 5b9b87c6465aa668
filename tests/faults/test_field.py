"""The script that gives a folder of cases to the commands."""

from pathlib import Path

import pytest

from tests.faults import field
from tests.faults.field import Cases, End
from tests.support.odd_files import odd_volume


def test_a_command_is_run_and_what_every_run_says_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    says = "settings:\\n  lr: float = 0.1\\n100%%|##| 3/3 [00:01, 2.1it/s]\\na warning | here"
    (tmp_path / "odd.sh").write_text(f'printf "{says}\\n"; ls -d "$DATA" "$LOGS"; exit 3')
    (tmp_path / "other.sh").write_text("exit 4")
    (tmp_path / "healthy").mkdir()
    field.main(Cases(folder=tmp_path, only=("odd",)))
    (line,) = capsys.readouterr().out.splitlines()[2:]
    assert line.startswith(rf"| odd | bash | 3 | a warning \| here<br>{tmp_path / 'healthy'}<br>/")


def test_what_a_case_holds_says_which_script_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []

    def run(words: list[str], logs: Path, cases: Path) -> End:
        called.append([Path(words[1]).name, *words[2:]])
        nothing_left = len(called) == 1
        return End(status=2, said=("the volume filters leave none of 1",) * nothing_left)

    monkeypatch.setattr(field, "run", run)
    monkeypatch.setattr(field, "trained", lambda _: Path("checkpoint"))
    odd_volume(tmp_path / "data" / "multicoil_train" / "v.h5")
    odd_volume(tmp_path / "kspace" / "v.h5")
    field.main(Cases(folder=tmp_path))
    assert [words[0] for words in called] == ["pretrain_dev.py"] * 2 + ["reconstruct.py"]
    assert f"data_path={tmp_path / 'data'}" in called[0]
    assert "train_filter.magnet=null" in set(called[1]) - set(called[0])
    assert {"checkpoint=checkpoint", f"volumes={tmp_path / 'kspace'}"} <= set(called[2])
