"""From a checkpoint and a folder of volumes to a folder of reconstructions."""

import dataclasses
import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from banding_removal import __version__
from banding_removal.config.overrides import from_words
from banding_removal.config.settings import REPOSITORY, Settings
from banding_removal.data.batch import collate
from banding_removal.data.dataset import SliceDataset
from banding_removal.data.masks import MaskSampler
from banding_removal.data.operators import center_crop, rss, to_image
from banding_removal.data.volume import VolumeError, read_volume
from banding_removal.errors import CheckpointError, ConfigError
from banding_removal.model.predictor import Predictor
from banding_removal.processes.exit_status import describe_error, exit_code
from banding_removal.processes.launch import launch
from banding_removal.reconstruction.files import Origin
from banding_removal.reconstruction.folder import Report, StoppedAmongVolumes, reconstruct
from banding_removal.reconstruction.plan import Job, shares_by_size
from banding_removal.reconstruction.settings import ReconstructSettings
from banding_removal.reconstruction.volume import images_of_volume, output_size
from banding_removal.runs.build import build_predictor
from banding_removal.runs.checkpoint import load_checkpoint
from tests.support.fastmri_files import make_kspace, write_volume
from tests.support.predictors import save_predictor

CPU = torch.device("cpu")
TRAINED = Settings(
    name="toy",
    data_path=Path("/nowhere"),  # the training data are not needed
    logs=Path("/nowhere"),
    device="cpu",
    cascades=1,
    chans=2,
    pools=1,
    sens_chans=2,
    acs_lines=(6,),
)
EVERY_COLUMN = MaskSampler(kind="equispaced", accelerations=(1,), acs=(6,))
FOURTH_COLUMNS = MaskSampler(kind="magic", accelerations=(4,), acs=(6,))


class ZeroFilled(nn.Module):
    """What is measured, as it is."""

    def forward(self, masked_kspace: Tensor, *_: Tensor) -> Tensor:
        return rss(to_image(masked_kspace))


@pytest.fixture
def settings(tmp_path: Path) -> ReconstructSettings:
    """A checkpoint, and two volumes of different sizes, one of them without target."""
    write_volume(tmp_path / "test" / "a.h5", slices=3, seed=1)
    write_volume(
        tmp_path / "test" / "b.h5",
        slices=2,
        coils=2,
        size=(36, 30),
        recon_size=(20, 18),
        with_target=False,
        seed=2,
    )
    return ReconstructSettings(
        checkpoint=save_predictor(tmp_path / "run", TRAINED),
        volumes=tmp_path / "test",
        output=tmp_path / "output",
        device="cpu",
        previews=False,
    )


def predictor_of(settings: ReconstructSettings) -> nn.Module:
    path = settings.checkpoint / "checkpoints" / "epoch003.pt"
    return build_predictor(TRAINED, CPU, load_checkpoint(path), path).eval()


def dataset_of(*paths: Path, masks: MaskSampler = FOURTH_COLUMNS) -> SliceDataset:
    return SliceDataset([read_volume(p) for p in paths], masks, seed=0, require_target=False)


def volume_of(
    predictor: nn.Module, dataset: SliceDataset, index: int = 0, *, rotated: bool = False
) -> Tensor:
    """All images of a volume (slice, h, w)."""
    slices = images_of_volume(predictor, dataset, index, device=CPU, rotated=rotated)
    return torch.stack([item.image for item in slices])


@torch.no_grad()
def by_hand(predictor: nn.Module, path: Path, size: tuple[int, int]) -> np.ndarray:
    """The predictor's own output for each slice of a volume."""
    dataset = dataset_of(path)
    images = []
    for i in range(len(dataset)):
        batch = collate([dataset[i]])
        output = predictor(batch.masked_kspace, batch.mask, batch.acs_lines)
        images.append(center_crop(output, size)[0, 0])
    return torch.stack(images).numpy()


def read(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    with h5py.File(path, "r") as file:
        assert list(file) == ["reconstruction"]
        return file["reconstruction"][()], dict(file.attrs)


def output_of(settings: ReconstructSettings) -> Path:
    assert settings.output is not None
    return settings.output


def contents(settings: ReconstructSettings) -> dict[str, bytes]:
    folder = output_of(settings)
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.h5"))}


def done(settings: ReconstructSettings) -> Report:
    report = reconstruct(settings)
    assert report is not None
    return report


# --- values ---


def test_files_hold_what_the_predictor_gives_and_where_it_is_from(
    settings: ReconstructSettings,
) -> None:
    report = done(settings)
    assert (report.written, report.slices, report.failures) == (2, 5, [])
    predictor, folder = predictor_of(settings), output_of(settings)
    for name, size in (("a.h5", (24, 24)), ("b.h5", (20, 18))):  # of the target, of the header
        images, attributes = read(folder / name)
        assert images.dtype == np.float32
        assert images.std() > 0
        np.testing.assert_array_equal(
            images, by_hand(predictor, settings.volumes / name, size), strict=True
        )
        assert attributes["checkpoint"].endswith("run/checkpoints/epoch003.pt")
        assert (attributes["epoch"], attributes["step"]) == (3, 70)
        assert attributes["source"] == str(settings.volumes / name)
        assert (attributes["orientation"], attributes["version"]) == ("x", __version__)
    example = dataset_of(settings.volumes / "b.h5")[0]
    assert attributes["acs_lines"] == 6
    assert attributes["measured_columns"] == int(example.mask.sum())
    assert attributes["acceleration"] == 30 / int(example.mask.sum())
    assert not list(folder.rglob("*.png"))


def test_in_memory_a_volume_is_the_same_as_in_its_file(settings: ReconstructSettings) -> None:
    done(settings)
    paths = [settings.volumes / name for name in ("a.h5", "b.h5")]
    dataset = dataset_of(*paths)
    for index, path in enumerate(paths):
        images = volume_of(predictor_of(settings), dataset, index)
        np.testing.assert_array_equal(images.numpy(), read(output_of(settings) / path.name)[0])


def test_a_predictor_in_training_mode_is_set_to_evaluate(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "a.h5")
    predictor = build_predictor(replace(TRAINED, dropout=0.5), CPU).train()
    first, second = (volume_of(predictor, dataset_of(path)) for _ in range(2))
    assert torch.equal(first, second)


def test_a_volume_undersampled_by_the_scanner_is_used_with_its_own_mask(
    settings: ReconstructSettings,
) -> None:
    mask = np.zeros(28, bool)
    mask[1::3] = True
    mask[10:18] = True  # the eight around the centre
    path = settings.volumes / "measured.h5"
    kspace = make_kspace(2, 3, 32, 28, (0, 28)) * mask
    write_volume(path, kspace=kspace.astype(np.complex64), mask=mask, with_target=False)
    done(settings)
    images, attributes = read(output_of(settings) / "measured.h5")
    assert (attributes["measured_columns"], attributes["acs_lines"]) == (mask.sum(), 8)
    assert images.shape == (2, 32, 28)
    with torch.no_grad():
        own = predictor_of(settings)(
            torch.from_numpy(kspace.astype(np.complex64)),
            torch.from_numpy(mask)[None, None, None],
            torch.tensor([8]),
        )
    np.testing.assert_allclose(images, own[:, 0], rtol=1e-4, atol=1e-5 * images.max())


def test_single_coil_volumes_are_reconstructed(settings: ReconstructSettings) -> None:
    path = write_volume(settings.volumes / "single.h5", coils=None, with_target=False)
    assert done(settings).written == 3
    expected = by_hand(predictor_of(settings), path, (32, 28))
    np.testing.assert_array_equal(read(output_of(settings) / "single.h5")[0], expected)


def test_images_are_cropped_as_fastmri_does(tmp_path: Path) -> None:
    def size(name: str, **options: Any) -> tuple[int, int]:
        return output_size(read_volume(write_volume(tmp_path / name, slices=1, **options)))

    knee = {"size": (40, 30)}
    assert size("target.h5", **knee, target_size=(24, 22), recon_size=(8, 8)) == (24, 22)
    assert size("header.h5", **knee, recon_size=(24, 22), with_target=False) == (24, 22)
    # Fewer columns than the header's images have: a square.
    assert size("narrow.h5", **knee, recon_size=(36, 36), with_target=False) == (30, 30)
    bare = "<ismrmrdHeader/>"
    assert size("nothing.h5", **knee, header=bare, with_target=False) == (40, 30)
    with h5py.File(tmp_path / "large.h5", "w") as file:
        file.update({"kspace": make_kspace(1, 2, 40, 30, (0, 30)), "ismrmrd_header": bare})
        file["reconstruction_rss"] = np.ones((1, 48, 24), np.float32)
    assert output_size(read_volume(tmp_path / "large.h5")) == (40, 24)


# --- orientations ---


def test_both_orientations_are_upright(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "a.h5", slices=2, target_size=(24, 20))
    dataset = dataset_of(path, masks=EVERY_COLUMN)
    images = {}
    for rotated in (False, True):
        items = list(images_of_volume(ZeroFilled(), dataset, 0, device=CPU, rotated=rotated))
        images[rotated] = torch.stack([item.image for item in items])
        for item in items:
            assert item.target is not None
            # With everything measured nothing but the target can come out.
            torch.testing.assert_close(item.image, item.target)
        assert {item.columns for item in items} == {32 if rotated else 28}
    torch.testing.assert_close(images[True], images[False])
    assert images[False].shape == (2, 24, 20)


def test_a_volume_equal_to_its_transpose_gives_transposes(tmp_path: Path) -> None:
    kspace = make_kspace(2, 3, 32, 32, (0, 32))
    symmetric = (kspace + kspace.swapaxes(-2, -1)).astype(np.complex64)
    path = write_volume(tmp_path / "a.h5", size=(32, 32), kspace=symmetric, acquired=(0, 32))
    along_x, along_y = (
        volume_of(ZeroFilled(), dataset_of(path), rotated=rotated) for rotated in (False, True)
    )
    torch.testing.assert_close(along_y, along_x.swapaxes(-2, -1))
    assert (along_y - along_x).abs().max() > 0.1 * along_x.max()  # and undersampling shows


def test_both_orientations_go_into_folders_of_their_own(settings: ReconstructSettings) -> None:
    done(settings)
    done(replace(settings, output=settings.volumes / "y", orientation="y"))
    both = replace(settings, output=settings.volumes / "both", orientation="both")
    assert done(both).written == 4
    for name in ("a.h5", "b.h5"):
        x, of_x = read(output_of(both) / "x" / name)
        y, of_y = read(output_of(both) / "y" / name)
        assert (of_x["orientation"], of_y["orientation"]) == ("x", "y")
        np.testing.assert_array_equal(x, read(output_of(settings) / name)[0])
        np.testing.assert_array_equal(y, read(settings.volumes / "y" / name)[0])
        assert x.shape == y.shape
        assert not np.array_equal(x, y)


def test_what_the_scanner_undersampled_is_not_transposed(settings: ReconstructSettings) -> None:
    path = write_volume(settings.volumes / "measured.h5", mask=np.arange(28) % 2 == 0)
    with pytest.raises(ConfigError, match=r"(?s)cannot be transposed: .*measured\.h5\norientation"):
        reconstruct(replace(settings, orientation="both"))
    assert not output_of(settings).exists()
    with pytest.raises(ValueError, match=r"measured\.h5 was undersampled"):
        volume_of(ZeroFilled(), dataset_of(path), rotated=True)


# --- previews ---


def test_previews_show_the_target_where_there_is_one(settings: ReconstructSettings) -> None:
    done(replace(settings, previews=True))
    widths = {}
    for name in ("a", "b"):
        with Image.open(output_of(settings) / "previews" / f"{name}.png") as page:
            widths[name] = page.width
            assert page.height > 4 * 240
    assert widths["a"] > 4 * 240  # target and reconstruction, and both again in low signal
    assert 2 * 216 < widths["b"] < 4 * 216


# --- going on, and not overwriting ---


def test_what_is_there_is_not_made_again(
    settings: ReconstructSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    done(settings)
    before = contents(settings)
    (output_of(settings) / "b.h5").unlink()
    stamp = (output_of(settings) / "a.h5").stat()
    moved = settings.checkpoint.rename(settings.checkpoint.parent / "elsewhere")
    assert done(replace(settings, checkpoint=moved)).written == 1
    assert (output_of(settings) / "a.h5").stat() == stamp
    assert read(output_of(settings) / "b.h5")[0].shape == (2, 20, 18)
    assert contents(settings).keys() == before.keys()
    assert "1 of 2 reconstructions exist already" in capsys.readouterr().out
    assert done(replace(settings, checkpoint=moved)).written == 0


@pytest.mark.parametrize("change", ["checkpoint", "orientation", "volumes", "foreign", "damaged"])
def test_other_reconstructions_are_not_overwritten(
    settings: ReconstructSettings, change: str, tmp_path: Path
) -> None:
    done(settings)
    (output_of(settings) / "b.h5").unlink()
    other = settings
    if change == "checkpoint":
        other = replace(settings, checkpoint=save_predictor(tmp_path / "other", TRAINED, seed=1))
    elif change == "orientation":
        other = replace(settings, orientation="y")
    elif change == "volumes":
        write_volume(tmp_path / "others" / "a.h5", slices=3, seed=9)  # of the same size
        other = replace(settings, volumes=tmp_path / "others")
    elif change == "foreign":
        other = replace(settings, output=settings.volumes)
    elif change == "damaged":
        (output_of(settings) / "a.h5").write_bytes(b"not HDF5")
    before = contents(other)
    with pytest.raises(FileExistsError, match=r"would be overwritten(?s:.)*a\.h5"):
        reconstruct(other)
    assert contents(other) == before


def test_a_stopped_run_leaves_whole_files_and_goes_on(
    settings: ReconstructSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_volume(settings.volumes / "c.h5", slices=6, seed=3)  # the largest: first
    through = replace(settings, output=settings.volumes / "through")
    done(through)
    original, calls = Predictor.forward, []

    def forward(self: Predictor, *args: Tensor) -> Tensor:
        calls.append(args)
        if len(calls) == 8:  # the second slice of the second volume
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args)

    monkeypatch.setattr(Predictor, "forward", forward)
    with pytest.raises(StoppedAmongVolumes, match="SIGTERM: 1 volumes are written, 2 left") as ends:
        launch(reconstruct, settings)
    assert exit_code(ends.value) == 75
    assert "give the same command again" in str(describe_error(ends.value))
    assert list(contents(settings)) == ["c.h5"]
    report = launch(reconstruct, settings)
    assert report is not None
    assert report.written == 2
    for name in ("a.h5", "b.h5", "c.h5"):
        expected = read(output_of(through) / name)[0]
        np.testing.assert_array_equal(read(output_of(settings) / name)[0], expected)


def fail(number: int) -> Callable[..., None]:
    def failing(*args: Any) -> None:
        raise OSError(number, os.strerror(number))

    return failing


def test_a_full_disk_is_named_and_leaves_no_half_file(
    settings: ReconstructSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail(errno.ENOSPC))
        for previews in (False, True):
            with pytest.raises(OSError, match=r"cannot write .*a\.(h5|png): .*No space left"):
                reconstruct(replace(settings, previews=previews))
    files = [path.name for path in output_of(settings).rglob("*") if path.is_file()]
    assert files == [".lock"]
    assert done(settings).written == 2


def test_what_a_killed_process_left_is_removed_and_nothing_else(
    settings: ReconstructSettings,
) -> None:
    folder = output_of(settings)
    folder.mkdir()
    leftover, mine = folder / f".a.h5.{'0a' * 16}", folder / ".notes.h5.txt"
    for path in (leftover, mine):
        path.write_text("half")
    done(settings)
    assert not leftover.exists()
    assert mine.read_text() == "half"


# --- bad volumes ---


def test_unusable_files_are_named_before_anything_is_done(settings: ReconstructSettings) -> None:
    (settings.volumes / "broken.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    write_volume(settings.volumes / "narrow.h5", size=(32, 5), acquired=(0, 5), target_size=(4, 4))
    with pytest.raises(VolumeError, match=r"(?s)broken\.h5.*narrow\.h5: 6 centre lines") as error:
        reconstruct(settings)
    assert "2 unusable volume(s) (the other 2 can be used with skip_bad_volumes=true)" in str(
        error.value
    )
    assert not output_of(settings).exists()
    report = done(replace(settings, skip_bad_volumes=True))
    assert report.written == 2
    assert [re.search(r"(\w+)\.h5", line)[1] for line in report.failures] == ["broken", "narrow"]  # type: ignore[index]


def test_a_volume_that_fails_on_the_way_costs_no_other_one(
    settings: ReconstructSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    kspace = make_kspace(3, 3, 40, 40, (0, 40))
    kspace[2, 0, 3, 3] = np.nan
    write_volume(settings.volumes / "nan.h5", size=(40, 40), kspace=kspace, with_target=False)
    write_volume(settings.volumes / "vast.h5", size=(48, 48), with_target=False)
    original = Predictor.forward

    def forward(self: Predictor, masked_kspace: Tensor, *args: Tensor) -> Tensor:
        if masked_kspace.shape[-1] == 48:
            raise torch.OutOfMemoryError("CUDA out of memory.\nDetails")
        return original(self, masked_kspace, *args)

    monkeypatch.setattr(Predictor, "forward", forward)
    report = done(settings)
    assert report.written == 2
    assert list(contents(settings)) == ["a.h5", "b.h5"]
    vast, nan = report.failures
    assert re.search(r"vast\.h5: CUDA out of memory\.$", vast)
    assert re.search(r"nan\.h5: k-space of slice 2 has NaN", nan)


def test_a_reconstruction_that_is_not_finite_is_named(tmp_path: Path) -> None:
    class Broken(ZeroFilled):
        def forward(self, masked_kspace: Tensor, *_: Tensor) -> Tensor:
            return super().forward(masked_kspace) * torch.nan

    path = write_volume(tmp_path / "a.h5")
    with pytest.raises(FloatingPointError, match=r"reconstruction of a\.h5 slice 0 is not finite"):
        volume_of(Broken(), dataset_of(path))


def test_wrong_paths_are_named(settings: ReconstructSettings, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    with pytest.raises(CheckpointError, match="nothing does not exist"):
        reconstruct(replace(settings, checkpoint=nothing))
    with pytest.raises(FileNotFoundError, match="nothing does not exist; set volumes"):
        reconstruct(replace(settings, volumes=nothing))
    nothing.mkdir()
    with pytest.raises(FileNotFoundError, match=r"nothing holds no \*\.h5 file"):
        reconstruct(replace(settings, volumes=nothing))
    assert not output_of(settings).exists()


# --- settings, processes, script ---


def test_the_default_output_is_in_the_run_by_epoch(settings: ReconstructSettings) -> None:
    folder = settings.checkpoint / "reconstructions" / "epoch003"
    assert done(replace(settings, output=None)).folder == folder / "test"
    one = replace(settings, output=None, volumes=settings.volumes / "a.h5")
    assert done(one).folder == folder / "a"
    assert [path.name for path in (folder / "a").glob("*.h5")] == ["a.h5"]


def test_every_setting_of_a_reconstruction_is_read() -> None:
    text = "\n".join(
        (REPOSITORY / "banding_removal" / name).read_text()
        for name in ("reconstruction/folder.py", "reconstruction/plan.py", "processes/launch.py")
    )
    for field in dataclasses.fields(ReconstructSettings):
        assert f"settings.{field.name}" in text
    for word in ("window=0", "nproc=0", "timeout_minutes=-1"):
        with pytest.raises(ConfigError, match="must be above 0"):
            from_words(ReconstructSettings(), [word])


def test_volumes_are_shared_by_size(settings: ReconstructSettings, tmp_path: Path) -> None:
    origin = Origin(
        checkpoint="", checkpoint_sha256="", epoch=0, step=0, source="", source_bytes=0,
        orientation="x", version="",
    )  # fmt: skip
    jobs = [
        Job(
            volume=read_volume(
                write_volume(tmp_path / f"{slices}_{coils}.h5", slices=slices, coils=coils)
            ),
            path=Path(f"{slices * coils}"),
            origin=origin,
        )
        for slices, coils in ((2, 1), (3, 4), (7, 1), (5, 1))
    ]
    shares = [[job.path.name for job in share] for share in shares_by_size(jobs, 2)]
    assert shares == [["12", "2"], ["7", "5"]]


def test_two_processes_write_what_one_does(
    settings: ReconstructSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    kspace = make_kspace(3, 3, 40, 40, (0, 40))
    kspace[2, 0, 3, 3] = np.nan
    write_volume(settings.volumes / "nan.h5", size=(40, 40), kspace=kspace, with_target=False)
    alone = done(settings)
    together = replace(settings, output=settings.volumes / "together", nproc=2)
    report = launch(reconstruct, together)
    assert report is not None
    assert (report.written, report.slices) == (alone.written, alone.slices) == (2, 5)
    assert report.failures == alone.failures != []
    assert contents(together) == contents(settings)


def test_the_script_runs_under_ipython(settings: ReconstructSettings) -> None:
    (settings.volumes / "broken.h5").write_bytes(b"")
    words = [
        f"{name}={getattr(settings, name)}"
        for name in ("checkpoint", "volumes", "output", "device")
    ]
    command = [sys.executable, "-m", "IPython", "--no-banner"]
    result = subprocess.run(
        [*command, str(REPOSITORY / "scripts" / "reconstruct.py"), *words, "skip_bad_volumes=true"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 2, result.stderr
    assert "2 volumes (5 slices" in result.stdout
    assert "broken.h5" in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert sorted(p.name for p in output_of(settings).rglob("*.*") if p.name != ".lock") == [
        "a.h5", "a.png", "b.h5", "b.png",
    ]  # fmt: skip
