import shutil
from pathlib import Path
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter

from banding_removal.runs.metrics_file import MetricsWriter
from tests.support.runs import read_metrics


# TensorBoard's thread ends with an error when its file is gone.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("removed", ["", "tensorboard"])
def test_a_folder_that_is_removed_while_a_row_is_written_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: str
) -> None:
    run = tmp_path / "run"
    metrics = MetricsWriter(run)
    metrics.write("train", step=1, epoch=1, values={"loss": 3.0})
    original, left = SummaryWriter.add_scalar, [run / removed]

    def removing(*args: Any, **words: Any) -> None:
        if left:
            shutil.rmtree(left.pop())
            raise FileNotFoundError("as TensorBoard's thread has found")
        original(*args, **words)

    monkeypatch.setattr(SummaryWriter, "add_scalar", removing)
    for step in (2, 3):
        metrics.write("train", step=step, epoch=1, values={"loss": 2.0})
    metrics.close()
    kept = [2, 3] if removed == "" else [1, 2, 3]
    assert [row["step"] for row in read_metrics(run)] == kept
    assert [*(run / "tensorboard").iterdir()]
