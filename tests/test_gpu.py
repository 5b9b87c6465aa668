"""The same on a GPU; skipped where there is none."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from banding_removal.config.recipes import ADVERSARY, DIRECT, PAPER
from banding_removal.config.settings import Settings
from banding_removal.data.batch import collate
from banding_removal.reconstruction.folder import reconstruct
from banding_removal.reconstruction.settings import ReconstructSettings
from banding_removal.runs.datasets import make_datasets
from banding_removal.training.loop import train
from banding_removal.training.players import make_players
from banding_removal.training.schedule import settings_of_step
from banding_removal.training.step import train_step
from tests.support.runs import SCRIPTS, read_metrics

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = torch.device("cuda")


@pytest.fixture
def on_gpu(settings: Settings) -> Settings:
    return replace(settings, device="cuda", workers=1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_both_stages_run_by_every_recipe(on_gpu: Settings, precision: str, optimizer: str) -> None:
    settings = replace(on_gpu, precision=precision, optimizer=optimizer)  # type: ignore[arg-type]
    before = train(replace(settings, name="before", paired=True))
    for name, recipe in (("direct", DIRECT), ("paper", PAPER), ("adversary", ADVERSARY)):
        recipe = {**recipe, "optimizer": optimizer, "adversary_chans": 8}
        run = train(replace(settings, **recipe, stage="train", name=name, init_from=str(before)))
        losses = [row["loss"] for row in read_metrics(run) if row["kind"] == "train"]
        assert losses and np.isfinite(losses).all(), name
        assert any((run / "grids").glob("epoch*.png"))


def test_a_run_goes_on_where_it_stopped(on_gpu: Settings) -> None:
    settings = replace(on_gpu, dropout=0.1, precision="float32")
    through = train(replace(settings, epochs=2, name="through"))
    half = train(replace(settings, epochs=1, name="half"))
    torch.cuda.manual_seed(123)  # whatever the process drew in between
    assert train(replace(settings, epochs=2, name="half", resume=half)) == half
    # A GPU adds up in any order; another dropout would be another loss altogether.
    losses = [
        [row["loss"] for row in read_metrics(run) if row["kind"] == "train"]
        for run in (through, half)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_reconstructions_are_those_of_the_cpu(on_gpu: Settings) -> None:
    run = train(replace(on_gpu, precision="bfloat16"))
    volumes = on_gpu.data_path / "multicoil_val"
    for device in ("cuda", "cpu"):
        output = on_gpu.logs / device
        reconstruct(
            ReconstructSettings(checkpoint=run, volumes=volumes, output=output, device=device)
        )
    written = sorted((on_gpu.logs / "cuda").glob("*.h5"))
    assert len(written) == 2
    for path in written:
        with h5py.File(path) as mine, h5py.File(on_gpu.logs / "cpu" / path.name) as other:
            image, expected = mine["reconstruction"][()], other["reconstruction"][()]
        # PyTorch's float32 convolutions are TF32 on a GPU: 10 bits of the mantissa. Rounding their
        # inputs like that on a CPU moves a pixel by up to 0.0015 of the maximum.
        np.testing.assert_allclose(image, expected, rtol=0, atol=4e-3 * expected.max())


def test_memory_does_not_grow_from_step_to_step(on_gpu: Settings) -> None:
    settings = replace(on_gpu, **{**PAPER, "stage": "train", "adversary_chans": 8})
    players = make_players(settings, GPU)
    train_set = make_datasets(settings)[0]
    in_use = []
    for _ in range(30):
        batch = collate([train_set[0]]).to(GPU)
        train_step(players, [[batch]], settings_of_step(settings, epochs=0, step=1))
        in_use.append(torch.cuda.memory_allocated())
    assert in_use[-1] == in_use[4]


def test_torchrun_trains_over_nccl(on_gpu: Settings, tmp_path: Path) -> None:
    words = ["acs_lines=[6]", "epochs=1", "cascades=1", "chans=2", "pools=1", "sens_chans=2"]
    words += [f"data_path={on_gpu.data_path}", f"logs={tmp_path / 'logs'}", "device=cuda"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1"]
    done = subprocess.run(
        [*torchrun, str(SCRIPTS / "pretrain.py"), *words],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = tmp_path / "logs" / "run"
    assert (run / "log.txt").read_text().rstrip().endswith("the run is complete")
