import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity

from banding_removal.config.settings import Settings
from banding_removal.data.batch import collate
from banding_removal.data.dataset import SliceDataset
from banding_removal.data.filters import VolumeFilter
from banding_removal.data.masks import MaskSampler
from banding_removal.data.operators import rss, to_image
from banding_removal.data.volume import VolumeError, read_volume
from banding_removal.errors import CheckpointError, ConfigError
from banding_removal.model.classifiers import Architecture
from banding_removal.pictures.kept_slices import read_slices
from banding_removal.processes.team import Team
from banding_removal.runs.checkpoint import find_checkpoint, load_checkpoint
from banding_removal.runs.datasets import make_datasets
from banding_removal.runs.log import early_records
from banding_removal.training.loop import train
from banding_removal.training.players import make_players
from banding_removal.training.schedule import settings_of_step
from banding_removal.training.step import train_step
from banding_removal.training.validation import Validator, choose_display_slices
from tests.support.fastmri_files import write_volume
from tests.support.runs import ZeroFilled, assert_same_weights, read_metrics, weights_of


@pytest.mark.parametrize("adversary", [None, "simple"])
def test_the_last_cascades_may_be_trained_alone(
    settings: Settings, adversary: Architecture | None
) -> None:
    settings = replace(settings, cascades=3, recompute=4)
    before = train(replace(settings, name="before", epochs=1))
    after = replace(settings, stage="train", init_from=str(before), trained_cascades=1)
    after = replace(after, streak_weight=0.1, adversary=adversary, adversary_chans=8)
    through = train(replace(after, name="through"))
    half = train(replace(after, name="half", epochs=1))
    resumed = train(replace(after, name="half", resume=half))
    assert_same_weights(through, resumed)
    old, new = weights_of(before), weights_of(through)
    for key, value in old.items():
        # Biases before an instance norm have no gradient.
        if not key.endswith("bias"):
            assert torch.equal(value, new[key]) != key.startswith("cascades.2."), key


@pytest.mark.parametrize("workers", [0, 2])
def test_two_epochs_and_two_after_a_resume_equal_four_bit_for_bit(
    settings: Settings, workers: int
) -> None:
    settings = replace(settings, workers=workers, dropout=0.1)  # dropout draws random numbers
    through = train(replace(settings, epochs=4, name="through"))
    half = train(replace(settings, name="half"))
    torch.manual_seed(123)  # whatever the process drew in between
    resumed = train(replace(settings, epochs=4, name="half", resume=half))
    assert resumed == half
    assert_same_weights(through, resumed)
    a, b = (load_checkpoint(find_checkpoint(f)) for f in (through, resumed))
    assert a.step == b.step == 24
    for key in ("train_loss", "val_loss", "val_ssim", "lr", "volumes"):
        assert [row[key] for row in a.history] == [row[key] for row in b.history]
    assert [row["epoch"] for row in read_metrics(half) if row["kind"] == "val"] == [1, 2, 3, 4]


def test_the_number_of_workers_changes_nothing(settings: Settings) -> None:
    alone = train(replace(settings, name="alone", epochs=1))
    helped = train(replace(settings, name="helped", epochs=1, workers=2))
    assert_same_weights(alone, helped)


def test_a_run_writes_everything_one_looks_at(settings: Settings) -> None:
    folder = train(settings)
    assert (settings.logs / "run").resolve() == folder.resolve()
    pictures = [folder / "curves.png"]
    pictures += [folder / "grids" / n for n in ("epoch001.png", "epoch002.png", "raw_grid.png")]
    arrays = []
    for path in pictures:
        with Image.open(path) as picture:
            arrays.append(np.asarray(picture))
    assert not np.array_equal(arrays[1], arrays[2])
    rows = read_metrics(folder)
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 13))
    val = [row for row in rows if row["kind"] == "val"]
    assert {
        "loss",
        "nmse",
        "psnr",
        "ssim",
        "ssim/Aera_CORPD_FBK",
        "ssim/Avanto_CORPDFS_FBK",
    } <= set(val[0])
    assert list((folder / "tensorboard").iterdir())
    page = (folder / "index.html").read_text()
    kept = read_slices(folder)
    assert [*kept.epochs] == [1, 2] and len(kept.slices) == 3
    assert 'id="0/2/y/2"' in page
    assert '"state": "the run is complete"' in page
    text = (folder / "log.txt").read_text()
    assert "lr: float = 0.001" in text
    assert text.rstrip().endswith("the run is complete")


def test_runs_never_overwrite_each_other(settings: Settings) -> None:
    settings = replace(settings, epochs=1)
    first = train(settings)
    before = {p: p.read_bytes() for p in first.rglob("*") if p.is_file()}
    second = train(replace(settings, seed=1))
    third = train(replace(settings, init_from=str(first)))
    assert [f.name for f in (first, second, third)] == ["toy", "toy_2", "toy_3"]
    assert (settings.logs / "run").resolve() == third.resolve()
    assert {p: p.read_bytes() for p in first.rglob("*") if p.is_file()} == before


def test_init_from_takes_the_weights_and_nothing_else(settings: Settings) -> None:
    first = train(settings)
    again = train(replace(settings, init_from=str(first), epochs=1, lr=1e-30))
    assert_same_weights(first, again)
    checkpoint = load_checkpoint(find_checkpoint(again))
    assert (checkpoint.epoch, checkpoint.step) == (1, 6)


def test_a_resume_says_what_has_changed(settings: Settings) -> None:
    folder = train(replace(settings, epochs=1))
    train(replace(settings, resume=folder, lr=5e-4))
    text = (folder / "log.txt").read_text()
    assert "setting changed since the checkpoint: lr: 0.001 -> 0.0005" in text


def test_a_resume_from_an_older_checkpoint_is_refused_and_nothing_is_lost(
    settings: Settings,
) -> None:
    folder = train(replace(settings, epochs=3))
    before = sorted(p.name for p in (folder / "checkpoints").iterdir())
    older = folder / "checkpoints" / "epoch001.pt"
    with pytest.raises(CheckpointError, match=r"gone on to epoch003\.pt"):
        train(replace(settings, resume=older, epochs=2, keep_checkpoints=1))
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == before
    branch = train(replace(settings, init_from=str(older), epochs=1))
    assert branch != folder


def test_a_resume_says_that_the_data_changed_and_that_nothing_is_left(settings: Settings) -> None:
    folder = train(replace(settings, epochs=1))
    (settings.data_path / "multicoil_train" / "file0.h5").unlink()
    train(replace(settings, epochs=1, resume=folder))
    text = (folder / "log.txt").read_text()
    assert "the training volumes are not those of the checkpoint: 0 new, 1 missing" in text
    assert "nothing is left to do" in text


def test_a_volume_without_target_is_named_whatever_the_filters(settings: Settings) -> None:
    write_volume(settings.data_path / "multicoil_val" / "notarget.h5", with_target=False)
    with pytest.raises(VolumeError, match=r"notarget\.h5: has no target"):
        train(settings)
    _, val_set = make_datasets(replace(settings, skip_bad_volumes=True))
    assert len(val_set.volumes) == 2


def test_volumes_too_small_for_the_loss_are_named(settings: Settings) -> None:
    path = settings.data_path / "multicoil_train" / "tiny.h5"
    write_volume(path, size=(16, 16), target_size=(6, 6))
    with pytest.raises(VolumeError, match=r"tiny\.h5: has images of less than 7 x 7"):
        train(settings)


def test_the_log_begins_with_what_was_left_out(settings: Settings) -> None:
    folder = settings.data_path / "multicoil_train"
    (folder / "text.h5").write_text("not HDF5")
    write_volume(folder / "strong.h5", field_strength=2.9)
    run = train(replace(settings, epochs=1, skip_bad_volumes=True))
    text = (run / "log.txt").read_text()
    assert "text.h5" in text
    assert "3 of 4 volumes kept: magnet removed 1" in text


def test_masks_that_no_volume_allows_are_refused_before_a_folder_is_made(
    settings: Settings,
) -> None:
    with pytest.raises(ConfigError, match="200 centre lines do not fit"):
        train(replace(settings, acs_lines=(200,)))
    assert not (settings.logs / "toy").exists()


def test_a_checkpoint_of_another_model_is_refused_before_a_folder_is_made(
    settings: Settings,
) -> None:
    folder = train(replace(settings, epochs=1))
    with pytest.raises(CheckpointError, match="does not fit the model"):
        train(replace(settings, init_from=str(folder), chans=4))
    assert sorted(p.name for p in settings.logs.iterdir()) == ["index", "run", "toy"]


def test_batches_of_two_train_although_sizes_and_orientations_differ(settings: Settings) -> None:
    folder = train(replace(settings, batch_size=2, epochs=1))
    steps = [row for row in read_metrics(folder) if row["kind"] == "train"]
    assert 3 <= len(steps) < 6


def test_single_coil_data_train(settings: Settings) -> None:
    for part in ("train", "val"):
        path = settings.data_path / f"singlecoil_{part}" / "file.h5"
        write_volume(path, coils=None, slices=2)
    folder = train(replace(settings, challenge="singlecoil", epochs=1))
    assert np.isfinite(load_checkpoint(find_checkpoint(folder)).history[0]["val_ssim"])


def test_a_missing_path_says_what_to_put_where_and_leaves_nothing_behind(
    settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        train(replace(settings, data_path=tmp_path / "nowhere"))
    for part in ("DATA_PATH", "multicoil_train/*.h5", "multicoil_val/*.h5", "make_phantom.py"):
        assert part in str(caught.value)
    assert not settings.logs.exists()


def test_filters_that_leave_nothing_say_which(settings: Settings) -> None:
    nothing = VolumeFilter(magnet=7)
    with pytest.raises(ConfigError, match="magnet removed 3"):
        train(replace(settings, train_filter=nothing))


def test_a_run_that_does_not_begin_says_what_was_odd(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (settings.data_path / "multicoil_train").glob("*.h5"):
        write_volume(path, field_strength="1,5")  # type: ignore[arg-type]
    settings = replace(settings, train_filter=VolumeFilter(magnet=1.5))
    with pytest.raises(ConfigError, match=r"field strengths found: none given \(3 volumes\)"):
        train(settings)
    said = capsys.readouterr().err
    assert said.count("in 3 of 3 volumes the ISMRMRD header is unclear") == 1
    assert "systemFieldStrength_T is '1,5', not a number" in said
    with pytest.raises(ConfigError), early_records(rank=1):  # only the first process prints
        make_datasets(settings)
    assert not capsys.readouterr().err


def test_bad_volumes_are_all_named_before_anything_starts(settings: Settings) -> None:
    folder = settings.data_path / "multicoil_train"
    (folder / "text.h5").write_text("not HDF5")
    write_volume(folder / "empty.h5", drop=("kspace",))
    with pytest.raises(VolumeError) as caught:
        train(settings)
    assert "text.h5" in str(caught.value)
    assert "empty.h5" in str(caught.value)
    assert not (settings.logs / "toy").exists()
    train_set, _ = make_datasets(replace(settings, skip_bad_volumes=True))
    assert len(train_set.volumes) == 3


def test_nan_in_kspace_ends_the_run_with_file_and_slice_in_the_log(settings: Settings) -> None:
    path = settings.data_path / "multicoil_train" / "file1.h5"
    kspace = np.ones((2, 3, 32, 28), np.complex64)
    kspace[1, 2, 3, 4] = np.nan
    write_volume(path, kspace=kspace, attrs={"max": 1.0})
    with pytest.raises(VolumeError, match="slice 1 has NaN"):
        train(settings)
    text = (settings.logs / "toy" / "log.txt").read_text()
    assert "the run ended with VolumeError" in text
    assert "file1.h5" in text


def test_a_loss_that_is_not_finite_names_the_slice_and_leaves_the_weights(
    settings: Settings,
) -> None:
    train_set, _ = make_datasets(settings)
    players = make_players(settings, torch.device("cpu"))
    with torch.no_grad():
        players.predictor.get_parameter("cascades.0.dc_weight").fill_(float("nan"))
    before = {key: value.clone() for key, value in players.predictor.state_dict().items()}
    groups = [[collate([train_set[0]])]]
    with pytest.raises(FloatingPointError, match=r"^loss is nan on .*file0\.h5 slice 0"):
        train_step(players, groups, settings_of_step(settings, epochs=0, step=1))
    for key, value in players.predictor.state_dict().items():
        assert torch.equal(value, before[key]) or value.isnan().all()


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there_is_refused(settings: Settings, device: str) -> None:
    with pytest.raises(ConfigError, match="device"):
        train(replace(settings, device=device))


def test_validation_figures_are_means_over_volumes_and_groups_as_scikit_image_has_them(
    settings: Settings,
) -> None:
    _, val_set = make_datasets(settings)
    device = torch.device("cpu")
    validator = Validator(
        val_set, display=[1, 4], device=device, workers=0, l1_weight=0.01, team=Team()
    )
    result = validator.run(ZeroFilled(cascades=1, chans=2, pools=1, sens_chans=2))
    assert result is not None
    expected = {}
    for v, volume in enumerate(val_set.volumes):
        examples = [val_set[i] for i, place in enumerate(val_set.places) if place[0] == v]
        values = []
        for example in examples:
            assert example.target is not None
            # 32 x 28 down to the target's 24 x 24
            image = rss(to_image(example.masked_kspace))[0, 4:28, 2:26].double().numpy()
            target = example.target[0].double().numpy()
            values.append(structural_similarity(target, image, data_range=example.data_range))
        expected[volume.group] = np.mean(values)
    for group, value in expected.items():
        assert result.metrics[f"ssim/{group}"] == pytest.approx(value, rel=1e-6)
    assert result.metrics["ssim"] == pytest.approx(np.mean(list(expected.values())), rel=1e-6)
    assert [(s.pair.name, s.pair.slice_index) for s in result.display] == [
        ("val0.h5", 1),
        ("val1.h5", 1),
    ]


def test_display_slices_are_fixed_spread_out_and_begin_with_an_end_slice(tmp_path: Path) -> None:
    volumes = [
        read_volume(write_volume(tmp_path / f"v{i}.h5", slices=n))
        for i, n in enumerate((8, 7, 8, 5))
    ]
    dataset = SliceDataset(volumes, MaskSampler(kind="magic", accelerations=(4,), acs=(4,)), seed=0)
    chosen = choose_display_slices(dataset, 6)
    assert chosen == choose_display_slices(dataset, 6)
    assert len(set(chosen)) == 6
    assert dataset.places[chosen[0]] == (0, 0)
    assert {dataset.places[i][0] for i in chosen} == {0, 1, 2, 3}
    assert len(set(choose_display_slices(dataset, 20))) == 20
    assert sorted(choose_display_slices(dataset, 100)) == list(range(28))
    assert choose_display_slices(dataset, 0) == []


def test_the_front_door_leaves_logging_as_it_was(settings: Settings) -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    train(replace(settings, epochs=1))
    assert (root.level, list(root.handlers)) == before


def test_bfloat16_changes_little(settings: Settings) -> None:
    folders = {
        precision: train(replace(settings, precision=precision, name=precision))
        for precision in ("float32", "bfloat16")
    }
    rows = {
        precision: next(row for row in read_metrics(folder) if row["kind"] == "train")
        for precision, folder in folders.items()
    }
    exact, lower = (rows[precision]["loss"] for precision in ("float32", "bfloat16"))
    assert lower != exact
    assert lower == pytest.approx(exact, rel=0.01)


def test_recomputing_everything_changes_nothing(settings: Settings) -> None:
    folders = [
        train(replace(settings, recompute=networks, name=f"recompute{networks}"))
        for networks in (0, 2)
    ]
    assert_same_weights(*folders)
