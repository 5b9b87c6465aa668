"""A run that was carried to another machine goes on there."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from banding_removal.data.phantom.files import write_dataset
from banding_removal.errors import ConfigError
from banding_removal.runs.checkpoint import find_checkpoint, load_checkpoint
from banding_removal.runs.resume import completed_run
from banding_removal.training import loop
from benchmarks.carry import Carry, main
from benchmarks.efficacy_recipes import SIZES, stage_1

STEPS = 4


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]


def test_an_interrupted_run_goes_on_from_its_small_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    data, logs = Path("data"), Path("logs")
    for machine in (here, there):
        machine.mkdir()
        monkeypatch.chdir(machine)
        write_dataset(data, SIZES["tiny"].phantom, train_volumes=2, val_volumes=1, seed=0, jobs=2)
    settings = replace(stage_1("tiny", 0), data_path=data, logs=logs, checkpoint_every=1, chans=8)
    monkeypatch.chdir(here)
    real = loop.train_step
    begun: list[None] = []

    def interrupted(*args: Any) -> dict[str, float]:
        begun.append(None)
        if len(begun) > STEPS:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "train_step", interrupted)
        loop.train(settings)
    main(Carry(runs=logs, to=there / logs))
    with pytest.raises(ConfigError, match="stage_1 exists"):
        main(Carry(runs=logs, to=there / logs))
    big, small = (find_checkpoint(machine / logs / "stage_1") for machine in (here, there))
    assert small.name == big.name
    before, after = load_checkpoint(big), load_checkpoint(small)
    for name, weight in before.predictor.items():
        assert after.predictor[name].dtype == torch.float16
        torch.testing.assert_close(after.predictor[name].float(), weight, rtol=1e-3, atol=1e-6)
    momenta = [x for state in after.optimizer["state"].values() for x in state.values() if x.ndim]
    assert momenta and all(x.dtype == torch.bfloat16 for x in momenta)

    whole = loop.train(settings)  # goes on here
    monkeypatch.chdir(there)
    assert completed_run(settings) is None
    assert loop.train(settings) == whole == logs / "stage_1"
    mine, expected = losses(there / whole), losses(here / whole)
    assert len(expected) > STEPS and mine[:STEPS] == expected[:STEPS]
    assert mine == pytest.approx(expected, rel=0.02)

    monkeypatch.chdir(tmp_path)
    main(Carry(runs=there / logs, to=logs))
    assert completed_run(settings) == whole
    assert load_checkpoint(find_checkpoint(whole)).optimizer == {}


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run with a checkpoint"):
        main(Carry(runs=tmp_path, to=tmp_path / "to"))
