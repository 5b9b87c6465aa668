import json
import logging
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from banding_removal.config.settings import Settings
from banding_removal.errors import ConfigError
from banding_removal.pictures.page_content import curves, events, step_curves, with_start
from banding_removal.pictures.run_page import NAME, PageSettings, PageWriter, page_of_runs
from banding_removal.runs.checkpoint import save_checkpoint
from banding_removal.runs.log import read_records
from banding_removal.runs.metrics_file import METRICS, spread_rows
from tests.support.checkpoints import checkpoint_of, tiny_predictor
from tests.support.pages import HISTORY, banded_slice, write_run


def content_of(page: Path) -> dict[str, Any]:
    found = re.search(r'id="page">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    content: dict[str, Any] = json.loads(found[1])
    return content


def test_the_page_holds_everything_and_asks_no_host(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    PageWriter(folder, Settings(lr=0.5)).write(HISTORY, {})
    text = (folder / NAME).read_text()
    assert "default-src 'none'" in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    for name in ("0/0/target/2", "0/1/x/0", "0/3/y/2"):
        assert f'id="{name}"' in text
    (run,) = content_of(folder / NAME)["runs"]
    assert run["state"] == "the run is complete"
    assert run["settings"]["lr"] == "0.5" and run["settings"]["train_filter.magnet"] == "1.5"
    assert run["log"][0].endswith("run folder <b>x</b> </script>")  # as data, not as an element
    assert run["curves"]["series"]["val_banding"] == [None, 2.0, 2.0]


def test_curves_have_a_value_or_a_gap_for_each_epoch() -> None:
    rows: list[dict[str, Any]] = [
        {"epoch": 1, "val_ssim": 0.123456789, "volumes": {}},
        {"epoch": 3, "lr": float("inf")},
    ]
    assert curves(rows) == {
        "epochs": [1, 3],
        "series": {"val_ssim": [0.123457, None], "lr": [None, None]},
    }
    assert curves([]) == {"epochs": [], "series": {}}


def test_the_validation_before_stage_2_is_epoch_0() -> None:
    assert with_start(HISTORY, {}) == HISTORY
    found = curves(with_start(HISTORY, {"banding": 2.5, "loss": 0.5}))
    assert found["epochs"] == [0, 1, 2, 3]
    assert found["series"]["val_banding"] == [2.5, None, 2.0, 2.0]
    assert found["series"]["train_loss"][0] is None


def test_single_steps_are_where_they_happened() -> None:
    step = {"kind": "train", "epoch": 1, "step": 5, "total_steps": 30.0, "loss": 0.25}
    rows = [step, {**step, "step": 15, "loss": None}, {"kind": "val", "epoch": 1, "step": 10}]
    assert step_curves(rows, {"epochs": 3}) == {
        "epochs": [0.5, 1.5],
        "series": {"loss": [0.25, None]},
    }
    assert step_curves([], {}) == {"epochs": [], "series": {}}


def test_a_sample_of_a_long_file_is_spread_evenly_and_has_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    assert spread_rows(path, 10) == []
    lines = [json.dumps({"kind": "train", "epoch": 1, "step": step}) for step in range(5000)]
    path.write_text("\n".join(lines) + '\n{"kind": "tr')
    steps = [row["step"] for row in spread_rows(path, 100)]
    assert len(steps) == 100 and steps[0] == 0 and steps[-1] > 4900
    gaps = {after - before for before, after in pairwise(steps)}
    assert min(gaps) > 40 and max(gaps) < 60
    path.write_text("\n".join(lines[:20]) + "\n")
    assert len(spread_rows(path, 100)) == 20


def test_events_are_where_they_happened(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", epochs=[])
    found = events(read_records(folder / "log.txt"))
    assert [(event["kind"], event["epoch"]) for event in found] == [
        ("rollback", 1.5),
        ("stop", 2.5),
        ("resumed", 2.5),
        ("complete", 3),
    ]
    assert "a loss is nan" in found[0]["text"]


def test_a_page_that_cannot_be_written_is_logged_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = PageWriter(tmp_path, Settings())
    in_the_way = tmp_path / "slices"
    in_the_way.write_text("a file where the folder should be")
    slices = [banded_slice(0, 1)]
    with caplog.at_level(logging.INFO):
        writer.add_epoch(1, slices, HISTORY[:1], {})
        writer.add_epoch(2, slices, HISTORY[:2], {})
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert str(tmp_path / NAME) in caplog.text and "slices" in caplog.text
        in_the_way.unlink()
        writer.add_epoch(3, slices, HISTORY, {})
    assert (tmp_path / NAME).exists()
    assert caplog.records[-1].getMessage().endswith("is written again")


def test_several_runs_share_a_page(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / part / "run", epochs=[1, 2]) for part in "ab"]
    for folder in folders:
        save_checkpoint(folder, checkpoint_of(tiny_predictor(), epoch=2), keep=2)
    output = tmp_path / "new" / "both.html"
    assert page_of_runs(PageSettings(runs=(*folders,), output=output)) == output
    runs = content_of(output)["runs"]
    assert [run["name"] for run in runs] == ["a/run", "b/run"]
    assert runs[0]["settings"] == {"lr": "0.001"}
    assert runs[0]["curves"] == {"epochs": [0, 2], "series": {"val_ssim": [0.5, 0.5]}}
    assert 'id="1/2/x/0"' in output.read_text()
    single = page_of_runs(PageSettings(runs=(folders[0],)))
    assert single == folders[0] / NAME and single.exists()


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not the folder of a run"):
        page_of_runs(PageSettings(runs=(tmp_path,)))
    with pytest.raises(ConfigError, match="name one run"):
        PageSettings(runs=())
