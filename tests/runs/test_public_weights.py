import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from banding_removal.command_line import settings_of
from banding_removal.config.settings import Settings
from banding_removal.errors import CheckpointError
from banding_removal.evaluation.settings import EvaluateSettings, evaluate_files
from banding_removal.evaluation.show_banding import ShowSettings, show
from banding_removal.model.predictor import Predictor
from banding_removal.model.varnet import VarNet
from banding_removal.reconstruction.folder import reconstruct
from banding_removal.reconstruction.settings import ReconstructSettings
from banding_removal.runs.checkpoint import load_checkpoint
from banding_removal.runs.trained import load_trained
from banding_removal.training.loop import train
from tests.support.checkpoints import Exploit
from tests.support.runs import weights_of

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {"cascades": 3, "chans": 4, "pools": 1, "sens_chans": 2, "sens_pools": 2}


@pytest.fixture
def weights() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return VarNet(**SIZES).state_dict()


@pytest.fixture
def path(tmp_path: Path, weights: dict[str, Tensor]) -> Path:
    path = tmp_path / "public" / "knee_leaderboard_state_dict.pt"
    path.parent.mkdir()
    torch.save(weights, path)
    return path


def as_lightning(weights: dict[str, Tensor]) -> dict[str, object]:
    """As Lightning saves a `VarNetModule`: its loss has a buffer beside the network."""
    of_module = {f"varnet.{key}": value for key, value in weights.items()}
    return {
        "epoch": 49,
        "global_step": 1000,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": OrderedDict(
            {**of_module, "NMSE.quantity": torch.tensor(0.0), "loss.w": torch.ones(1, 1, 7, 7)}
        ),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 50}}}},
        "hparams_name": "kwargs",
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best": torch.tensor(0.1)}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []}],
        "lr_schedulers": [{"last_epoch": 49, "_last_lr": [3e-4]}],
        "hyper_parameters": {"num_cascades": 3, "lr": 3e-4},
    }


@pytest.mark.parametrize("lightning", [False, True])
def test_sizes_are_found_in_the_shapes_and_the_weights_are_loaded(
    path: Path, weights: dict[str, Tensor], lightning: bool
) -> None:
    if lightning:
        torch.save(as_lightning(weights), path)
    trained = load_trained(path, CPU)
    assert isinstance(trained.predictor, VarNet)
    assert {key: getattr(trained.settings, key) for key in SIZES} == SIZES
    assert trained.settings.predictor == "varnet"
    loaded = trained.predictor.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in loaded.items())


@pytest.mark.parametrize(
    ("words", "network"),
    [([], {"predictor": "varnet", **SIZES}), (["chans=8"], {"chans": 8, "predictor": "varnet"})],
)
def test_training_takes_the_network_from_the_file_unless_words_set_it(
    path: Path, words: list[str], network: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "orig_argv", [sys.argv[0]])
    settings = settings_of(Settings(), [f"init_from={path}", "lr=0.5", *words])
    assert {key: getattr(settings, key) for key in network} == network
    assert settings.lr == 0.5 and settings.mask == "magic"


def test_one_command_each_works_with_a_file_of_weights(
    path: Path, settings: Settings, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "orig_argv", [sys.argv[0]])
    volumes = settings.data_path / "multicoil_val"
    words = [f"init_from={path}", "stage=train", "epochs=1", "lr=1e-9", "name=s2"]
    run = train(settings_of(settings, words))
    after = weights_of(run)
    assert all(torch.allclose(after[key], value, atol=1e-6) for key, value in weights.items())
    assert load_checkpoint(run / "checkpoints" / "epoch001.pt").settings["predictor"] == "varnet"

    report = reconstruct(ReconstructSettings(checkpoint=path, volumes=volumes, device="cpu"))
    assert report is not None and report.written == 2
    assert report.folder == path.parent / "reconstructions" / path.stem / "multicoil_val"
    table = evaluate_files(
        EvaluateSettings(
            sets={"varnet": path, "ours": run},
            volumes=volumes,
            output=path.parent / "table",
            logs=settings.logs,
            device="cpu",
            probe=False,
        )
    )
    assert "varnet" in table and "ours" in table
    picture = show(ShowSettings(checkpoint=path, data_path=settings.data_path, device="cpu"))
    assert picture == path.parent / "banding.png" and picture.exists()


def test_weights_of_another_network_are_answered_with_the_keys_and_the_predictors(
    path: Path, weights: dict[str, Tensor]
) -> None:
    fewer = {key: value for key, value in weights.items() if not key.startswith("cascades.2")}
    others: dict[str, dict[str, Tensor]] = {
        r"sensitivity\.unet\.unet\.down.*unknown": Predictor(cascades=1, chans=2).state_dict(),
        r"layer1\.weight: unknown": {"layer1.weight": torch.ones(2, 2)},
        r" 1 keys do not fit.*\n  cascades\.1\.dc_weight: has shape \(2,\)": {
            **weights,
            "cascades.1.dc_weight": torch.ones(2),
        },
        r"cascades\.2\.dc_weight: missing": {
            **fewer,
            "cascades.2.model.unet.up_conv.0.1.bias": weights["cascades.2.dc_weight"],
        },
    }
    for message, content in others.items():
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=message) as caught:
            load_trained(path, CPU)
        assert "predictor can be cascade, varnet, or package.module:Class" in str(caught.value)
        assert str(caught.value).count("\n") <= 6


@pytest.mark.parametrize("content", [{}, {"a": 1}, [torch.ones(1)], {"state_dict": {"a": "b"}}])
def test_what_holds_no_weights_is_not_a_checkpoint(path: Path, content: object) -> None:
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        load_checkpoint(path)


def test_python_objects_beside_the_weights_are_refused(
    path: Path, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    torch.save({**as_lightning(weights), "hyper_parameters": Exploit(victim)}, path)
    with pytest.raises(CheckpointError, match="Python objects"):
        load_checkpoint(path)
    assert not victim.exists()
    torch.save({**as_lightning(weights), "hyper_parameters": {"root": Path("a")}}, path)
    with pytest.raises(CheckpointError, match=r"pathlib PosixPath.*save its weights alone"):
        load_checkpoint(path)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before PyTorch 1.6"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_other_precisions_and_old_files_are_read(
    path: Path, weights: dict[str, Tensor], dtype: torch.dtype, old: bool
) -> None:
    converted = {key: value.to(dtype) for key, value in weights.items()}
    torch.save(converted, path, _use_new_zipfile_serialization=not old)
    for key, value in load_trained(path, CPU).predictor.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, converted[key].float())


def test_weights_of_a_run_load_into_the_same_names(settings: Settings, path: Path) -> None:
    run = train(replace(settings, predictor="varnet", epochs=1, predictor_kwargs={}))
    torch.save(weights_of(run), path)
    assert load_trained(path, CPU).settings.cascades == settings.cascades
