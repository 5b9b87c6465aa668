"""Loading processes where shared memory is small, as in containers, or cannot be handed over."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.fastmri_files import write_volume

REPOSITORY = Path(__file__).resolve().parents[2]
UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")
ALLOWED = subprocess.run(
    [*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], capture_output=True, check=False
)

LOADING = """
import subprocess, sys
from pathlib import Path
import torch
from banding_removal.data.dataset import Draw, SliceDataset
from banding_removal.data.index import index_folder
from banding_removal.data.masks import MaskSampler
from banding_removal.processes.signals import StopRequest
from banding_removal.training.loading import batches_of, make_loader

folder = Path(sys.argv[1])
masks = MaskSampler(kind="magic", accelerations=(4,), acs=(6,))
dataset = SliceDataset(index_folder(folder, cache_folder=folder / "index"), masks, seed=0)
draws = [[Draw(epoch=0, index=index)] for index in range(len(dataset))]

def batches(workers):
    loader = make_loader(dataset, draws, workers, torch.device("cpu"))
    dataset.close()
    return [batch.measured for batch in batches_of(loader, StopRequest())]

expected = batches(0)
"""
# Print, for each size of shared memory, whether the batches are the same as without workers.
SIZES = """
for size in ("8m", "72k", "16k"):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm"], check=True)
    found = batches(2)
    print(size, len(found), all(map(torch.equal, found, expected)), flush=True)
"""
AS_IT_IS = """
found = batches(2)
print(len(found), all(map(torch.equal, found, expected)))
"""


def run(code: str, folder: Path, command: tuple[str, ...] = (), **environment: str) -> Any:
    """Run Python code with loading processes, on one volume of three slices."""
    write_volume(folder / "volume.h5", slices=3, size=(128, 96))
    return subprocess.run(
        [*command, sys.executable, "-c", LOADING + code, str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.mark.skipif(ALLOWED.returncode != 0, reason="file systems cannot be mounted here")
def test_batches_are_the_same_with_little_shared_memory_and_with_hardly_any(tmp_path: Path) -> None:
    result = run(SIZES, tmp_path, UNSHARE)
    assert result.stdout.splitlines() == ["8m 3 True", "72k 3 True", "16k 3 True"], result.stderr
    assert result.stderr.count("batches go through a pipe") == 1  # of two workers
    assert result.stderr.count("slices are loaded in this process, as with workers=0") == 1
    assert "Traceback" not in result.stderr


def test_batches_are_the_same_where_the_folder_for_temporary_files_has_a_long_path(
    tmp_path: Path,
) -> None:
    temporary = tmp_path / ("x" * 100)
    temporary.mkdir()
    result = run(AS_IT_IS, tmp_path, TMPDIR=str(temporary))
    assert result.stdout == "3 True\n", result.stderr
