"""Networks of other code train, resume, reconstruct and are evaluated as this project's own."""

import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from banding_removal.command_line import settings_of
from banding_removal.config.settings import Settings
from banding_removal.data.phantom.files import write_dataset
from banding_removal.data.phantom.spec import DEMO
from banding_removal.errors import CheckpointError, ConfigError
from banding_removal.evaluation.settings import EvaluateSettings, evaluate_files
from banding_removal.evaluation.show_banding import ShowSettings, show
from banding_removal.processes.launch import launch
from banding_removal.reader_study.make import make_study
from banding_removal.reader_study.settings import MakeSettings
from banding_removal.reconstruction.folder import reconstruct
from banding_removal.reconstruction.settings import ReconstructSettings
from banding_removal.training.loop import train
from tests.support.runs import assert_same_weights, weights_of

PAGE = Path(__file__).parents[1] / "docs" / "predictors.md"
NAME = "my_networks:ImageUNet"


def documented(class_name: str) -> str:
    """The block of Python in the page that defines a class."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    (block,) = (block for block in blocks if f"class {class_name}" in block)
    return block


@pytest.fixture
def own(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with the documented U-Net, which lies in a folder of its own."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "my_networks.py").write_text(documented("ImageUNet"))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{Path(__file__).parents[1]}")
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    return replace(settings, predictor=NAME, predictor_kwargs={"chans": 4, "levels": 2})


def test_it_trains_in_both_stages_and_goes_on_after_a_resume(own: Settings) -> None:
    first = train(own)
    assert {key.split(".")[0] for key in weights_of(first)} == {"down", "up", "last"}
    header = next(line for line in (first / "log.txt").read_text().splitlines() if NAME in line)
    assert header.split() == ["predictor:", "str", "=", NAME]
    stage_2 = replace(
        own, stage="train", name="s2", init_from=str(first), streak_weight=0.1, paired=True
    )
    whole = train(replace(stage_2, epochs=2))
    short = train(replace(stage_2, epochs=1, name="short"))
    assert_same_weights(whole, train(replace(stage_2, epochs=2, resume=short)))
    assert sorted(path.name for path in (whole / "grids").iterdir()) == [
        "epoch001.png",
        "epoch002.png",
        "raw_grid.png",
    ]


def test_it_is_recomputed_as_a_whole_and_trains_in_bfloat16(own: Settings) -> None:
    own = replace(own, epochs=1)
    kept = train(own)
    assert_same_weights(kept, train(replace(own, recompute=1, name="again")))
    lower = train(replace(own, precision="bfloat16", recompute=1, name="lower"))
    for key, value in weights_of(lower).items():
        assert value.dtype == torch.float32
        assert (value - weights_of(kept)[key]).abs().max() < 0.02


def test_two_processes_train_it(own: Settings) -> None:
    folder = launch(train, replace(own, nproc=2, epochs=1, recompute=1))
    assert "rank 0 of 2" in (folder / "log.txt").read_text()
    assert weights_of(folder)["last.bias"].isfinite()


def test_a_checkpoint_does_not_choose_what_is_imported(own: Settings, tmp_path: Path) -> None:
    run = train(replace(own, epochs=1))
    volumes = own.data_path / "multicoil_val"
    given = (NAME,)
    unnamed = ReconstructSettings(
        checkpoint=run, volumes=volumes, output=tmp_path / "out", device="cpu", orientation="both"
    )
    evaluation = EvaluateSettings(
        sets={"own": run},
        volumes=volumes,
        output=tmp_path / "table",
        logs=tmp_path,
        device="cpu",
        probe=False,
    )
    picture = ShowSettings(checkpoint=run, device="cpu", count=1)
    study = MakeSettings(
        sets={"a": run, "b": run},
        volumes=volumes,
        output=tmp_path / "study",
        logs=tmp_path,
        device="cpu",
        cases=2,
    )
    sys.modules.pop("my_networks")
    for attempt in (
        lambda: reconstruct(unnamed),
        lambda: evaluate_files(evaluation),
        lambda: show(picture),
        lambda: make_study(study),
        lambda: reconstruct(replace(unnamed, predictors=("my_networks:Other",))),
    ):
        with pytest.raises(ConfigError, match=f"trained with predictor={NAME}.*command line"):
            attempt()
    assert "my_networks" not in sys.modules
    report = reconstruct(replace(unnamed, predictors=given))
    assert report is not None and report.written == 4 and not report.failures
    assert "own" in evaluate_files(replace(evaluation, predictors=given))
    assert show(replace(picture, predictors=given)).exists()
    assert "2 cases" in make_study(replace(study, predictors=given))


def test_a_resumed_run_needs_its_predictor_on_the_command_line(
    own: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(replace(own, epochs=1))
    monkeypatch.setattr(sys, "orig_argv", [sys.argv[0]])
    words = [f"resume={run}", "epochs=2"]
    with pytest.raises(ConfigError, match="name it on the command line"):
        settings_of(Settings(), words)
    resumed = settings_of(Settings(), [*words, f"predictor={NAME}"])
    assert resumed.predictor_kwargs == {"chans": 4, "levels": 2}
    assert resumed.epochs == 2


def test_weights_of_its_own_are_a_start(own: Settings, tmp_path: Path) -> None:
    path = tmp_path / "mine.pt"
    weights = weights_of(train(replace(own, epochs=1)))
    torch.save(weights, path)
    run = train(replace(own, name="from_mine", init_from=str(path), lr=1e-12, epochs=1))
    for key, value in weights_of(run).items():
        torch.testing.assert_close(value, weights[key])
    del weights["last.bias"]
    torch.save(weights, path)
    with pytest.raises(CheckpointError, match=r"last\.bias: only in the model"):
        train(replace(own, name="other", init_from=str(path)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictor": "no_such_module_here:Net"}, "PYTHONPATH"),
        ({"predictor": "my_networks:Missing"}, "no attribute 'Missing'"),
        ({"predictor": "my_networks:block"}, "predictor_kwargs: missing a required argument"),
        ({"predictor_kwargs": {"channels": 4}}, "unexpected keyword argument 'channels'"),
        (
            {"predictor": "pathlib:PurePath", "predictor_kwargs": {}},
            "is a PurePosixPath, not a torch.nn.Module",
        ),
        ({"predictor": "varnet", "predictor_kwargs": {"width": 4}}, "argument 'width'"),
    ],
)
def test_what_cannot_be_made_is_answered(
    own: Settings, change: dict[str, object], message: str
) -> None:
    if change.get("predictor") == "my_networks:block":
        change = {**change, "predictor_kwargs": {}}
    with pytest.raises(ConfigError, match=message):
        train(replace(own, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["unet", "a:b:c", ":Net", "module:", "a b:C", "../a:B"])
def test_a_name_that_is_no_predictor_is_answered_with_those_there_are(name: str) -> None:
    with pytest.raises(ConfigError, match=r"must be cascade, varnet, or package\.module:Class"):
        Settings(predictor=name)


def test_single_cascades_of_other_code_cannot_be_chosen() -> None:
    with pytest.raises(ConfigError, match="trained_cascades needs predictor=cascade or varnet"):
        Settings(predictor="a:B", trained_cascades=1)


def test_an_image_of_another_shape_is_answered_with_the_protocol(own: Settings) -> None:
    module = Path(sys.path[0]) / "flat_networks.py"
    right, wrong = "image + scale * self.last(x)", "(image + scale * self.last(x))[:, 0]"
    module.write_text(documented("ImageUNet").replace(right, wrong))
    with pytest.raises(ValueError, match=r"returns real images \(1, 1, 32, 28\)"):
        train(replace(own, predictor="flat_networks:ImageUNet", rotate_probability=0.0))


def test_fastmris_own_varnet_trains_through_the_documented_adapter(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("fastmri")
    (tmp_path / "their_networks.py").write_text(documented("TheirVarNet"))
    monkeypatch.syspath_prepend(tmp_path)
    kwargs = {"num_cascades": 1, "chans": 2, "pools": 2, "sens_chans": 2, "sens_pools": 2}
    write_dataset(
        tmp_path / "phantom", replace(DEMO, slices=3), train_volumes=1, val_volumes=1, seed=0
    )
    theirs = replace(
        settings,
        predictor="their_networks:TheirVarNet",
        predictor_kwargs=kwargs,
        data_path=tmp_path / "phantom",
        epochs=1,
    )
    run = train(theirs)
    public = tmp_path / "public.pt"
    torch.save(weights_of(run), public)
    monkeypatch.setattr(sys, "orig_argv", [sys.argv[0]])
    ours = settings_of(replace(settings, data_path=tmp_path / "phantom"), [f"init_from={public}"])
    assert (ours.predictor, ours.cascades, ours.pools) == ("varnet", 1, 2)
    train(replace(ours, name="ours", epochs=1))
