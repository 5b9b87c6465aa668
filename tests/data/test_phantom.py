"""The phantom: anatomy, physics, file layout, and the making of a data set."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from banding_removal.config.overrides import from_words
from banding_removal.data.ismrmrd import parse_header
from banding_removal.data.operators import center_crop, rss, to_image
from banding_removal.data.phantom import files
from banding_removal.data.phantom.files import volume_seeds, write_dataset, write_volume
from banding_removal.data.phantom.receiver import Receiver
from banding_removal.data.phantom.scan import PhantomVolume, make_volume
from banding_removal.data.phantom.spec import DEMO, MEDIUM, REAL_SIZE, PhantomSpec
from banding_removal.data.phantom.tissues import USUAL_SIGNALS, draw_signals
from banding_removal.data.phantom.variety import varied
from banding_removal.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "make_phantom.py"
SMALL = replace(
    DEMO, kspace_size=(64, 64), target_size=(64, 64), coils=4, acquired=(2, 61), slices=5
)
TINY = replace(SMALL, kspace_size=(32, 24), target_size=(24, 24), acquired=(1, 22), slices=3)


@pytest.fixture(scope="module")
def volume() -> PhantomVolume:
    return make_volume(SMALL, seed=3)


def dataset_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.h5"))


def make_tiny_dataset(
    folder: Path,
    *,
    train_volumes: int = 2,
    spec: PhantomSpec = TINY,
    seed: int = 0,
) -> list[Path]:
    return write_dataset(folder, spec, train_volumes=train_volumes, val_volumes=1, seed=seed)


# ------------------------------------------------------------------------------------- volumes


def test_the_same_seed_gives_the_same_volume_and_another_seed_another(
    volume: PhantomVolume,
) -> None:
    again, other = make_volume(SMALL, seed=3), make_volume(SMALL, seed=4)
    np.testing.assert_array_equal(again.kspace, volume.kspace)
    np.testing.assert_array_equal(again.target, volume.target)
    assert (again.contrast, again.system_model) == (volume.contrast, volume.system_model)
    assert not np.allclose(other.kspace, volume.kspace)


@pytest.mark.parametrize("seed", [0, 1])  # PD, PDFS
def test_phantoms_made_before_are_made_again(seed: int) -> None:
    """Stored when the phantom was first released; the FFT's rounding differs between machines."""
    with np.load(Path(__file__).parent / "tiny_phantom.npz") as stored:
        before = {name: stored[f"{name}{seed}"] for name in ("kspace", "target", "noise_sigma")}
    volume = make_volume(TINY, seed)
    for now, name in ((volume.kspace[1], "kspace"), (volume.target, "target")):
        np.testing.assert_allclose(now, before[name], rtol=0, atol=1e-6 * np.abs(now).max())
    assert volume.noise_sigma == pytest.approx(float(before["noise_sigma"]), rel=1e-12)


def test_a_smaller_field_of_view_shows_the_same_knee_larger() -> None:
    whole = replace(SMALL, slices=3, noise=(1e-5, 1e-5), acquired=(0, 64))
    half = replace(whole, fov_mm=80.0)
    small, large = (make_volume(spec, seed=2).target[1] for spec in (whole, half))
    # pixel 32 is the centre of both; two pixels of `large` are one of `small`
    assert np.corrcoef(small[17:48, 17:48].ravel(), large[2::2, 2::2].ravel())[0, 1] > 0.95
    assert half.pixel_mm == whole.pixel_mm / 2
    assert b"<x>80</x><y>80</y>" in files.ismrmrd_header(make_volume(half, seed=2))


def test_loop_radii_lie_in_their_range_and_leave_all_other_draws_alone() -> None:
    usual, large = (
        Receiver.draw(np.random.default_rng(0), 12, radii) for radii in ((54, 66), (100, 120))
    )
    assert (usual.radius >= 54).all() and (usual.radius <= 66).all()
    assert (large.radius >= 100).all() and (large.radius <= 120).all()
    np.testing.assert_array_equal(usual.centre, large.centre)
    np.testing.assert_array_equal(usual.image_field.weights, large.image_field.weights)
    # larger loops see further: the images are more uniform
    spec = replace(SMALL, slices=3, noise=(1e-5, 1e-5))
    ratio = [
        make_volume(replace(spec, coil_radius_mm=radii), seed=2).target[1]
        for radii in ((20.0, 22.0), (400.0, 440.0))
    ]
    near, far = (image / image[24:40, 24:40].mean() for image in ratio)
    assert near.max() > 2 * far.max()


@pytest.mark.parametrize("spread", [0.0, 0.12, 0.4])
def test_signal_spread_is_the_deviation_of_the_logarithm_of_the_brightness(spread: float) -> None:
    rng = np.random.default_rng(0)
    ratios = [
        np.log(np.divide(draw_signals(rng, "PD", spread), USUAL_SIGNALS["PD"])) for _ in range(300)
    ]
    # a normal deviate clipped at twice its deviation has 0.956 of it
    assert np.std(ratios) == pytest.approx(0.956 * spread, rel=0.03)


def test_shapes_and_types_are_those_of_the_specification(volume: PhantomVolume) -> None:
    assert volume.kspace.shape == (5, 4, 64, 64)
    assert volume.kspace.dtype == np.complex64
    assert volume.target.shape == (5, 64, 64)
    assert volume.target.dtype == np.float32
    assert np.isfinite(volume.kspace).all()


def test_only_the_acquired_columns_hold_samples(volume: PhantomVolume) -> None:
    left, right = SMALL.acquired
    assert np.all(volume.kspace[..., :left] == 0)
    assert np.all(volume.kspace[..., right:] == 0)
    assert np.all(volume.kspace[..., left:right] != 0)


@pytest.mark.parametrize("spec", [SMALL, TINY])
def test_the_target_is_the_rss_of_the_cropped_inverse_fourier_transform(spec: PhantomSpec) -> None:
    volume = make_volume(spec, seed=5)
    images = center_crop(to_image(torch.from_numpy(volume.kspace)), spec.target_size)
    np.testing.assert_allclose(rss(images)[:, 0].numpy(), volume.target, rtol=1e-5)


def test_the_outer_slices_hold_noise_of_the_specified_level_and_the_middle_one_a_knee(
    volume: PhantomVolume,
) -> None:
    left, right = SMALL.acquired
    # mean square of an rss over 4 coils of which a fraction of the columns carries noise
    level = volume.noise_sigma * np.sqrt(4 * (right - left) / 64)
    for outer in (0, -1):
        assert np.sqrt(np.mean(volume.target[outer] ** 2)) == pytest.approx(level, rel=0.02)
    assert np.sqrt(np.mean(volume.target[2] ** 2)) > 2 * level


@pytest.mark.parametrize("seed", range(12))
def test_no_leg_reaches_the_outer_slices_and_every_middle_slice_has_one(seed: int) -> None:
    target = make_volume(replace(SMALL, slices=4, noise=(1e-4, 1e-4)), seed).target
    assert target[[0, -1]].max() < 0.01 * target.max()
    assert (target[1:-1].max(axis=(1, 2)) > 0.1 * target.max()).all()


@pytest.mark.parametrize(("share", "contrast"), [(0.0, "PD"), (1.0, "PDFS")])
def test_noise_lies_in_its_range_for_either_contrast(share: float, contrast: str) -> None:
    for seed in range(4):
        clean_spec = replace(SMALL, fat_suppressed_share=share, noise=(1e-6, 1e-6))
        clean = np.percentile(make_volume(clean_spec, seed).target, 99.5)
        volume = make_volume(replace(SMALL, fat_suppressed_share=share), seed)
        ratio = volume.noise_sigma / clean * (2 if contrast == "PD" else 1)
        assert volume.contrast == contrast
        assert 0.04 * 0.98 < ratio < 0.09 * 1.02  # the missing columns change `clean` a little


def test_fat_and_marrow_are_bright_without_fat_suppression_and_dark_with_it() -> None:
    # one knee under both contrasts: only the brightness of the tissues differs
    pd, pdfs = (make_volume(replace(SMALL, fat_suppressed_share=s), 1).target[2] for s in (0, 1))
    leg = pd > 0.2 * np.percentile(pd, 99)
    bright = pd > np.percentile(pd[leg], 60)
    ratio = pdfs / pd  # the coils' shading cancels
    assert np.median(ratio[bright]) < 0.5 * np.median(ratio[leg & ~bright])


def test_values_are_on_the_scale_of_fastmri() -> None:
    for seed in range(4):
        assert 1e-4 < np.percentile(make_volume(TINY, seed).target, 99.5) < 9e-4


@pytest.mark.parametrize(
    ("kspace_size", "target_size"), [((101, 87), (80, 80)), ((33, 20), (17, 19)), ((96, 96),) * 2]
)
def test_any_matrix_is_possible(kspace_size: tuple[int, int], target_size: tuple[int, int]) -> None:
    spec = replace(
        SMALL,
        kspace_size=kspace_size,
        target_size=target_size,
        acquired=(1, kspace_size[1] - 2),
        slices=3,
    )
    volume = make_volume(spec, seed=0)
    assert volume.kspace.shape == (3, 4, *kspace_size)
    assert volume.target.shape == (3, *target_size)
    assert volume.target[1].mean() > 2 * volume.target[0].mean()


def test_a_seed_gives_the_same_knee_at_every_matrix_size() -> None:
    quiet = replace(SMALL, slices=3, noise=(1e-5, 1e-5), acquired=(0, 64))
    fine = replace(quiet, kspace_size=(128, 128), target_size=(128, 128), acquired=(0, 128))
    small = make_volume(quiet, seed=2).target[1]
    large = make_volume(fine, seed=2).target[1]
    # pixel (i, j) of the small grid is the point of pixel (2 i, 2 j) of the large one
    assert np.corrcoef(small.ravel(), large[::2, ::2].ravel())[0, 1] > 0.95


def test_with_readout_oversampling_the_leg_fills_the_central_half() -> None:
    # REAL_SIZE at a tenth of its matrix, without noise
    spec = replace(
        REAL_SIZE,
        kspace_size=(64, 36),
        target_size=(32, 32),
        coils=3,
        acquired=(0, 36),
        slices=3,
        noise=(1e-5, 1e-5),
    )
    volume = make_volume(spec, seed=0)
    rows = rss(to_image(torch.from_numpy(volume.kspace[1])))[0].amax(dim=1)
    assert rows[16:48].min() > 0.2 * rows.max()
    assert max(rows[:12].max(), rows[52:].max()) < 0.02 * rows.max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_size": (65, 64)}, "target_size"),
        ({"target_size": (0, 64)}, "target_size"),
        ({"coils": 0}, "coils"),
        ({"acquired": (40, 64)}, "acquired"),
        ({"acquired": (0, 65)}, "acquired"),
        ({"slices": 2}, "slices"),
        ({"noise": (0.0, 0.1)}, "noise"),
        ({"noise": (0.2, 0.1)}, "noise"),
        ({"fat_suppressed_share": 1.5}, "fat_suppressed_share"),
        ({"fov_mm": 39.0}, "fov_mm"),
        ({"fov_mm": 641.0}, "fov_mm"),
        ({"fov_mm": float("nan")}, "fov_mm"),
        ({"coil_radius_mm": (0.0, 66.0)}, "coil_radius_mm"),
        ({"coil_radius_mm": (66.0, 54.0)}, "coil_radius_mm"),
        ({"coil_radius_mm": (54.0, float("inf"))}, "coil_radius_mm"),
        ({"signal_spread": -0.1}, "signal_spread"),
        ({"signal_spread": 1.1}, "signal_spread"),
    ],
)
def test_an_impossible_specification_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


# --------------------------------------------------------------------------------------- files


def test_a_file_has_the_layout_of_a_fastmri_knee(volume: PhantomVolume, tmp_path: Path) -> None:
    write_volume(tmp_path / "file1.h5", volume)
    assert [path.name for path in tmp_path.iterdir()] == ["file1.h5"]
    with h5py.File(tmp_path / "file1.h5", "r") as file:
        assert set(file) == {"kspace", "reconstruction_rss", "ismrmrd_header"}
        assert file["kspace"].dtype == np.complex64
        assert file["kspace"].compression is None
        np.testing.assert_array_equal(file["kspace"][()], volume.kspace)
        np.testing.assert_array_equal(file["reconstruction_rss"][()], volume.target)
        assert isinstance(file["ismrmrd_header"][()], bytes)
        assert set(file.attrs) == {"acquisition", "max", "norm", "patient_id"}
        assert file.attrs["acquisition"] in {"CORPD_FBK", "CORPDFS_FBK"}
        assert file.attrs["max"] == pytest.approx(volume.target.max())
        assert file.attrs["norm"] == pytest.approx(np.linalg.norm(volume.target), rel=1e-5)
        assert isinstance(file.attrs["patient_id"], str)


@pytest.mark.parametrize("spec", [SMALL, TINY, DEMO, MEDIUM, REAL_SIZE])
def test_the_header_gives_the_acquired_columns_and_the_sizes(spec: PhantomSpec) -> None:
    empty = np.zeros((0,), dtype=np.float32)
    header = files.ismrmrd_header(
        PhantomVolume(
            spec=spec,
            seed=0,
            contrast="PD",
            kspace=empty.astype(np.complex64),
            target=empty,
            noise_sigma=0,
            system_model="Phantom_A",
        )
    )
    read = parse_header(header)
    assert read.acquired == spec.acquired
    assert read.scanner == "Phantom_A"
    assert read.field_strength == pytest.approx(1.494)
    (height, width), (h, w) = spec.kspace_size, spec.target_size
    for x, y in ((height, width), (h, w)):
        assert f"<matrixSize><x>{x}</x><y>{y}</y><z>1</z></matrixSize>" in header.decode()
    assert f"<x>{160 * h / max(h, w):.6g}</x>" in header.decode()


def test_a_killed_write_leaves_the_earlier_file_and_no_half_one(
    volume: PhantomVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    old, new = tmp_path / "old.h5", tmp_path / "new.h5"
    write_volume(old, volume)
    before = old.read_bytes()
    monkeypatch.setattr(h5py.Group, "__setitem__", killed)
    for path in (old, new):
        with pytest.raises(KeyboardInterrupt):
            write_volume(path, volume)
    assert old.read_bytes() == before
    assert dataset_files(tmp_path) == [old]


# ------------------------------------------------------------------------------------ data sets


def test_train_and_val_hold_different_volumes(tmp_path: Path) -> None:
    written = make_tiny_dataset(tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in written]
    assert names == [
        "multicoil_train/file1000001.h5",
        "multicoil_train/file1000002.h5",
        "multicoil_val/file2000001.h5",
    ]
    volumes = []
    for path in written:
        with h5py.File(path, "r") as file:
            volumes.append((file["kspace"][()], file.attrs["patient_id"]))
    assert len({patient for _, patient in volumes}) == 3
    assert not np.allclose(volumes[0][0], volumes[2][0])
    assert json.loads((tmp_path / "phantom.json").read_text())["seed"] == 0


def test_random_shapes_fill_a_body_that_the_outer_slices_miss() -> None:
    spec = replace(SMALL, anatomy="leaves", noise=(1e-6, 2e-6))
    one, same, other = (make_volume(spec, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(one.target, same.target)
    assert not np.array_equal(one.target, other.target)
    anatomy = one.target > 0.02 * one.target.max()
    assert not anatomy[[0, -1]].any()
    assert (anatomy[1:-1].mean(axis=(1, 2)) > 0.05).all()
    with pytest.raises(ValueError, match="anatomy 'foot'"):
        replace(SMALL, anatomy="foot")  # type: ignore[arg-type]


def test_varied_specifications_lie_around_the_given_one() -> None:
    specs = [varied(DEMO, seed, "knee") for seed in range(200)]  # each checks itself
    assert specs[7] == varied(DEMO, 7, "knee")
    assert {spec.kspace_size for spec in specs} == {DEMO.kspace_size}
    assert {spec.coils for spec in specs} == set(range(3, 13))
    assert all(112 <= spec.fov_mm <= 200 for spec in specs)
    assert len({spec.acquired for spec in specs}) == 25


def test_only_training_volumes_vary(tmp_path: Path) -> None:
    count: dict[str, Any] = {"train_volumes": 4, "val_volumes": 2, "seed": 0}
    write_dataset(tmp_path, SMALL, **count, vary=True)
    shapes: dict[str, list[tuple[int, ...]]] = {
        split: [] for split in ("multicoil_train", "multicoil_val")
    }
    for path in volume_seeds(tmp_path, 0, 4, 2):
        with h5py.File(path) as file:
            shapes[path.parent.name].append(file["kspace"].shape)
    assert len(set(shapes["multicoil_train"])) > 1  # numbers of coils
    assert set(shapes["multicoil_val"]) == {(5, 4, 64, 64)}
    assert write_dataset(tmp_path, SMALL, **count, vary=True) == []
    with pytest.raises(FileExistsError, match="another specification"):
        write_dataset(tmp_path, SMALL, **count)


def test_a_second_call_writes_nothing_and_a_larger_one_only_what_is_missing(
    tmp_path: Path,
) -> None:
    make_tiny_dataset(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert make_tiny_dataset(tmp_path) == []
    assert [path.name for path in make_tiny_dataset(tmp_path, train_volumes=3)] == [
        "file1000003.h5"
    ]
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_an_interrupted_generation_is_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, volume: PhantomVolume) -> None:
        if path.name == "file1000002.h5":
            path.with_name(f".{path.name}.partial").write_bytes(b"half a file")
            raise KeyboardInterrupt
        write_volume(path, volume)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_volume", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_tiny_dataset(tmp_path / "a")
    assert len(dataset_files(tmp_path / "a")) == 1
    resumed = make_tiny_dataset(tmp_path / "a")
    assert [path.name for path in resumed] == ["file1000002.h5", "file2000001.h5"]
    make_tiny_dataset(tmp_path / "b")
    contents = [[p.read_bytes() for p in dataset_files(tmp_path / name)] for name in "ab"]
    assert contents[0] == contents[1]
    assert not list(tmp_path.rglob("*.partial"))


def test_a_folder_with_other_data_is_refused_and_left_alone(tmp_path: Path) -> None:
    make_tiny_dataset(tmp_path / "made")
    for change in ({"spec": replace(TINY, coils=2)}, {"seed": 1}):
        with pytest.raises(FileExistsError, match="another folder"):
            make_tiny_dataset(tmp_path / "made", **change)
    scan = tmp_path / "scans" / "multicoil_train" / "file1000001.h5"
    scan.parent.mkdir(parents=True)
    scan.write_bytes(b"a patient")
    with pytest.raises(FileExistsError, match="not a phantom"):
        make_tiny_dataset(tmp_path / "scans")
    assert scan.read_bytes() == b"a patient"
    assert not (tmp_path / "scans" / "phantom.json").exists()


def test_a_manifest_without_later_fields_means_their_defaults(tmp_path: Path) -> None:
    make_tiny_dataset(tmp_path)
    path = tmp_path / "phantom.json"
    manifest = json.loads(path.read_text())
    for name in ("fov_mm", "coil_radius_mm", "signal_spread"):
        del manifest["spec"][name]
    path.write_text(json.dumps(manifest, indent=2) + "\n")
    assert make_tiny_dataset(tmp_path) == []
    for change in ({"fov_mm": 150.0}, {"coil_radius_mm": (54.0, 67.0)}, {"signal_spread": 0.2}):
        with pytest.raises(FileExistsError, match="another folder"):
            make_tiny_dataset(tmp_path, spec=replace(TINY, **change))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"spec": 1}', "not JSON"])
def test_a_damaged_manifest_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "phantom.json").write_text(text)
    with pytest.raises(FileExistsError, match="another folder"):
        make_tiny_dataset(tmp_path)
    assert (tmp_path / "phantom.json").read_text() == text


def test_a_full_disk_is_noticed_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = files.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OSError, match="free"):
        make_tiny_dataset(tmp_path)
    assert dataset_files(tmp_path) == []


# ----------------------------------------------------------------------------------- the script


def test_the_script_runs_under_ipython_from_anywhere(tmp_path: Path) -> None:
    words = ["folder=made", "train_volumes=1", "val_volumes=1", "slices=3"]
    run = subprocess.run(
        [sys.executable, "-m", "IPython", str(SCRIPT), *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path / "profile")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    folder = tmp_path.resolve() / "made"
    assert len(dataset_files(folder)) == 2
    assert f"ipython scripts/pretrain_dev.py data_path={folder}\n" in run.stdout
    assert f'DATA_PATH = "{folder}"\n' in run.stdout


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    # scripts are not a package
    spec = importlib.util.spec_from_file_location("make_phantom", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_phantom"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["make_phantom"]


@pytest.mark.parametrize("word", ["volumes=3", "seed=many", "size=huge", "--size=real"])
def test_a_wrong_word_is_answered_with_the_valid_ones(script: ModuleType, word: str) -> None:
    with pytest.raises(ConfigError, match=r"train_volumes: int = 24"):
        from_words(script.PhantomSettings(), [word])


@pytest.mark.parametrize("word", ["seed=-1", "val_volumes=-1", "slices=2"])
def test_an_impossible_number_ends_the_script_before_it_makes_the_folder(
    script: ModuleType, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        script.main([f"folder={tmp_path / 'made'}", word])
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert word.split("=")[0] in captured.err
    assert captured.out == ""
    assert not (tmp_path / "made").exists()


def test_words_arrive_in_the_settings(script: ModuleType) -> None:
    words = ["size=real", "folder=/data/a=b", "slices=7", "seed=5"]
    settings = from_words(script.PhantomSettings(), words)
    assert settings.folder == Path("/data/a=b")
    assert settings.seed == 5
    assert settings.spec() == replace(REAL_SIZE, slices=7)
    assert script.PhantomSettings().spec() == DEMO
