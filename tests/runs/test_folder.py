from pathlib import Path

import pytest

from banding_removal.runs.folder import new_run_folder, show_as_latest


def test_something_that_is_not_a_link_is_not_replaced_by_one(tmp_path: Path) -> None:
    folder = new_run_folder(tmp_path / "logs", "toy")
    (tmp_path / "logs" / "run").mkdir()
    with pytest.raises(FileExistsError, match="move it away"):
        show_as_latest(folder)
