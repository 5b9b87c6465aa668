"""The scripts as users start them: another process, another working folder."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.fastmri_files import write_volume
from tests.support.runs import SCRIPTS

TOY_MODEL = ("cascades=1", "chans=2", "pools=1", "sens_chans=2", "device=cpu", "workers=1")


def start(
    folder: Path, script: str, *words: str, ipython: bool = True
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(["-m", "IPython"] if ipython else []), str(SCRIPTS / script)]
    return subprocess.run(
        [*command, *words], capture_output=True, text=True, cwd=folder, timeout=300, check=False
    )


def read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_phantom_and_demo_run_under_ipython_from_any_folder(tmp_path: Path) -> None:
    data = f"folder={tmp_path / 'my phantom'}"
    made = start(tmp_path, "make_phantom.py", data, "train_volumes=2", "val_volumes=1", "slices=4")
    assert made.returncode == 0, made.stderr
    assert "pretrain_dev.py" in made.stdout

    words = (
        f"data_path={tmp_path / 'my phantom'}",
        f"logs={tmp_path / 'logs'}",
        "epochs=2",
        "nproc=2",
        "adversary_pretrain_steps=4",
    )
    demo = start(tmp_path, "demo.py", *words, *TOY_MODEL, "grid_zero_filled=true")
    assert demo.returncode == 0, demo.stderr
    for name in ("demo", "demo_stage_2"):
        run = tmp_path / "logs" / name
        first, second = (read(run / "grids" / f"epoch00{i}.png") for i in (1, 2))
        assert not np.array_equal(first, second)
        assert read(run / "grids" / "raw_grid.png").std() > 0
        assert f"logs/{name}/grids/epoch002.png" in demo.stdout
        for log in ("log.txt", "log_rank1.txt"):
            assert (run / log).read_text().rstrip().endswith("the run is complete")
    assert read(run / "comparison" / "comparison.png").std() > 0
    assert "| pretrained, dithered" in demo.stdout
    last = demo.stdout.strip().splitlines()[-1]
    assert "logs/demo.html in a browser" in last
    text = (tmp_path / "logs" / "demo.html").read_text()
    assert 'id="0/2/x/0"' in text and 'id="1/2/y/0"' in text
    assert "adversary: accuracy" in (run / "log.txt").read_text()
    assert (tmp_path / "logs" / "run").resolve() == run.resolve()

    again = start(tmp_path, "demo.py", *words, *TOY_MODEL, "grid_zero_filled=true", ipython=False)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("is complete; remove it to train again") == 2


def test_both_stages_chain_under_ipython_and_the_second_needs_the_first(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_volume(tmp_path / f"multicoil_{part}" / "volume.h5", slices=3)
    words = [f"data_path={tmp_path}", f"logs={tmp_path / 'logs'}", "acs_lines=[6]", "epochs=1"]
    words += TOY_MODEL
    alone = start(tmp_path, "train.py", *words)
    assert alone.returncode != 0
    assert "ipython scripts/pretrain.py" in alone.stderr
    first = start(tmp_path, "pretrain.py", *words, "nproc=1")
    assert first.returncode == 0, first.stderr
    against = ["recipe=paper", "adversary_chans=4", "epoch_fraction=1", "nproc=2"]
    second = start(tmp_path, "train.py", *words, *against)
    assert second.returncode == 0, second.stderr
    assert "weights from" in (tmp_path / "logs" / "run" / "log.txt").read_text()
    assert (tmp_path / "logs" / "train" / "log_rank1.txt").exists()
    direct = ["name=direct", "recipe=direct", "nproc=1"]
    third = start(tmp_path, "train.py", *words, *direct, ipython=False)
    assert third.returncode == 0, third.stderr
    assert "adversary: accuracy" not in (tmp_path / "logs" / "direct" / "log.txt").read_text()
    # With the run's own settings: none of the words above is needed again.
    resume = f"resume={tmp_path / 'logs' / 'train'}"
    resumed = start(tmp_path, "train.py", "epochs=2", resume, ipython=False)
    assert resumed.returncode == 0, resumed.stderr
    assert (tmp_path / "logs" / "train" / "grids" / "epoch002.png").exists()


@pytest.mark.parametrize(
    ("words", "says", "ipython"),
    [
        (("--lr=1e-4",), "write settings without dashes: lr=1e-4", True),
        (("--lr=1e-4",), "write settings without dashes: lr=1e-4", False),
        ((), "make the phantom data set with: ipython scripts/make_phantom.py", True),
        (("lrr=1e-4",), "Did you mean: 'lr'", True),
        (("epochs=many",), "could not be converted to Integer", False),
    ],
)
def test_a_mistake_ends_with_a_message_and_a_failure(
    tmp_path: Path, words: tuple[str, ...], says: str, ipython: bool
) -> None:
    result = start(tmp_path, "pretrain.py", f"logs={tmp_path}", *words, ipython=ipython)
    assert result.returncode != 0
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_nan_in_a_file_is_reported_in_a_line_although_another_process_read_it(
    tmp_path: Path,
) -> None:
    kspace = np.ones((2, 3, 32, 28), np.complex64)
    kspace[0, 0, 0, 0] = np.nan
    for part in ("train", "val"):
        path = tmp_path / f"multicoil_{part}" / "damaged.h5"
        write_volume(path, kspace=kspace, attrs={"max": 1.0})
    words = (f"data_path={tmp_path}", f"logs={tmp_path / 'logs'}", "acs_lines=[6]", *TOY_MODEL)
    result = start(tmp_path, "pretrain_dev.py", *words, ipython=False)
    assert result.returncode == 2
    last = result.stderr.strip().splitlines()[-1]
    assert re.search(r"damaged.h5: .* of slice \d has NaN or Inf", last)
    assert last.startswith("VolumeError: ")


def test_banding_of_files_that_cannot_be_transposed_is_not_shown(tmp_path: Path) -> None:
    mask = np.arange(28) % 2 == 0
    for part in ("train", "val"):
        write_volume(tmp_path / f"multicoil_{part}" / "measured.h5", mask=mask)
    words = (f"data_path={tmp_path}", f"logs={tmp_path / 'logs'}", "epochs=1", *TOY_MODEL)
    upright = "rotate_probability=0"
    assert start(tmp_path, "pretrain_dev.py", *words, upright, ipython=False).returncode == 0
    shown = start(tmp_path, "show_banding.py", f"checkpoint={tmp_path / 'logs' / 'run'}")
    assert shown.returncode != 0
    assert "cannot be transposed" in shown.stderr
