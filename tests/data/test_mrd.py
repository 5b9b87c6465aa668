import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from banding_removal.data import mrd
from banding_removal.data.mrd_import import LARGEST, import_scan
from banding_removal.data.operators import center_crop, rss, to_image
from banding_removal.data.volume import VolumeError

ismrmrd = pytest.importorskip("ismrmrd", reason="needs the package ismrmrd")

from tests.support.raw_files import PARALLEL, RawFile, coil_images, kspace_of  # noqa: E402

SIZE = (24, 20)


def target_of(kspace: np.ndarray, crop: tuple[int, int] = (12, 20)) -> np.ndarray:
    """RSS of k-space, scaled as an import is."""
    image = center_crop(rss(to_image(torch.from_numpy(kspace)))[:, 0], crop).numpy()
    return image * (LARGEST / image.max())


def stored(path: Path, name: str = "reconstruction_rss") -> np.ndarray:
    with h5py.File(path) as file:
        return np.asarray(file[name][()])


def test_a_fully_sampled_scan_gives_the_image_that_it_was_made_from(tmp_path: Path) -> None:
    images = coil_images(size=SIZE)
    raw = RawFile(size=SIZE).add_image(kspace_of(images)).write(tmp_path / "scan.h5")
    found = import_scan(raw, tmp_path / "out")
    (volume,) = found.volumes
    assert volume.name == "scan.h5"
    assert (volume.slices, volume.coils, volume.height, volume.width) == (2, 3, *SIZE)
    assert (volume.acquired, volume.recon_size, volume.target_size) == ((0, 20), (12, 20), (12, 20))
    assert (volume.scanner, volume.acquisition) == ("Aera", "PD sagittal")
    assert volume.field_strength == 1.494 and volume.measured is None
    assert (found.averages, found.whitened, found.left_out) == (1, False, {})
    expected = np.linalg.norm(images, axis=1)[:, 6:18]
    target = stored(tmp_path / "out" / "scan.h5")
    assert target == pytest.approx(expected * LARGEST / expected.max(), abs=1e-5 * LARGEST)
    assert volume.data_range == pytest.approx(LARGEST)
    with h5py.File(tmp_path / "out" / "scan.h5") as file:
        header = file["ismrmrd_header"][()]
        kspace = file["kspace"][()] / file.attrs["scale"]
        assert file.attrs["norm"] == pytest.approx(np.linalg.norm(target))
    assert np.abs(kspace - kspace_of(images)).max() < 1e-4
    assert b"Jane Doe" not in header and b"63610038" in header


def test_averages_are_averaged_and_contrasts_and_repetitions_are_volumes(tmp_path: Path) -> None:
    raw = RawFile(size=SIZE)
    kspaces = {}
    for contrast in range(2):
        for repetition in range(2):
            kspace = kspace_of(coil_images(size=SIZE, seed=2 * contrast + repetition))
            kspaces[contrast, repetition] = kspace
            for average, factor in enumerate((0.5, 1.5)):
                raw.add_image(
                    kspace * factor, average=average, contrast=contrast, repetition=repetition
                )
    found = import_scan(raw.write(tmp_path / "scan.h5"), tmp_path / "out", acquisition="T1")
    assert found.averages == 2
    assert [volume.name for volume in found.volumes] == [
        f"scan_contrast{contrast}_repetition{repetition}.h5" for contrast, repetition in kspaces
    ]
    for volume, kspace in zip(found.volumes, kspaces.values(), strict=True):
        assert volume.acquisition == "T1"
        assert stored(Path(volume.path)) == pytest.approx(target_of(kspace), abs=1e-9)


@pytest.mark.parametrize("center", ["of the stored line", "in the order of k-space"])
def test_reversed_readouts_are_turned(tmp_path: Path, center: str) -> None:
    kspace = kspace_of(coil_images(slices=1, size=SIZE))
    raw = RawFile(size=SIZE)
    for line in range(20):
        data = kspace[0, :, :, line]
        if line % 2:
            at = 11 if center == "of the stored line" else 12
            raw.add(data[:, ::-1], ismrmrd.ACQ_IS_REVERSE, center=at, line=line)
        else:
            raw.add(data, line=line)
    import_scan(raw.write(tmp_path / "scan.h5"), tmp_path / "out")
    assert stored(tmp_path / "out" / "scan.h5") == pytest.approx(target_of(kspace), abs=1e-9)


def test_partial_fourier_and_partial_echo_leave_zeros(tmp_path: Path) -> None:
    kspace = kspace_of(coil_images(slices=1, size=SIZE))
    raw = RawFile(size=SIZE, header={"maximum": 14, "center": 5})
    for line in range(15):  # columns 5 to 19; the first 4 samples of a readout are missing
        data = kspace[0, :, 4:, line + 5]
        padded = np.pad(data, ((0, 0), (2, 1)), constant_values=1e6)
        added = raw.add(padded, center=12 - 4 + 2, line=line)
        added.discard_pre, added.discard_post = 2, 1
    (volume,) = import_scan(raw.write(tmp_path / "scan.h5"), tmp_path / "out").volumes
    assert volume.acquired == (5, 20) and volume.measured is None
    kspace[..., :5], kspace[..., :4, :] = 0, 0
    assert stored(tmp_path / "out" / "scan.h5") == pytest.approx(target_of(kspace), abs=1e-9)


def test_an_interpolated_image_has_zeros_around_its_kspace(tmp_path: Path) -> None:
    kspace = kspace_of(coil_images(slices=1, size=SIZE))
    header = {"recon_x": 18, "recon_y": 30}  # 1.5 times the encoded resolution
    raw = RawFile(size=SIZE, header=header).add_image(kspace).write(tmp_path / "scan.h5")
    (volume,) = import_scan(raw, tmp_path / "out").volumes
    assert (volume.height, volume.width) == (36, 30)
    assert (volume.acquired, volume.recon_size) == ((5, 25), (18, 30))
    padded = np.pad(kspace, ((0, 0), (0, 0), (6, 6), (5, 5)))
    assert stored(Path(volume.path)) == pytest.approx(target_of(padded, (18, 30)), abs=1e-9)


@pytest.mark.parametrize(("mode", "kept"), [("embedded", True), ("separate", False)])
def test_an_undersampled_scan_keeps_its_lines_and_has_no_target(
    tmp_path: Path, mode: str, kept: bool
) -> None:
    kspace = kspace_of(coil_images(size=SIZE))
    raw = RawFile(size=SIZE, header={"parallel": PARALLEL.format(mode)})
    raw.add_image(kspace, lines=range(0, 20, 4))
    for number in range(2):
        for line in (9, 10, 11):
            raw.add(
                kspace[number, :, :, line],
                ismrmrd.ACQ_IS_PARALLEL_CALIBRATION,
                line=line,
                slice=number,
            )
    found = import_scan(raw.write(tmp_path / "scan.h5"), tmp_path / "out")
    (volume,) = found.volumes
    lines = {0, 4, 8, 12, 16} | ({9, 10, 11} if kept else set())
    assert volume.measured == "".join("1" if i in lines else "0" for i in range(20))
    assert volume.target_key is None and volume.recon_size == (12, 20)
    assert found.left_out == ({} if kept else {"lines of a separate calibration scan": 6})
    with h5py.File(volume.path) as file:
        columns = file["kspace"][()].any(axis=(0, 1, 2))
    assert set(np.flatnonzero(columns)) == lines


def test_noise_is_white_after_the_import_and_the_target_knows_no_scale(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mixing = np.array([[3, 0, 0], [2, 1, 0], [0.5j, 1, 0.3]])

    def noise(*shape: int) -> np.ndarray:
        white = rng.standard_normal((2, *shape, 3)) / np.sqrt(2)
        return np.moveaxis((white[0] + 1j * white[1]) @ mixing.T, -1, 0)

    raw = RawFile(size=SIZE)
    kspace = 20 * kspace_of(coil_images(slices=15, size=SIZE))
    disturbance = np.moveaxis(noise(15, *SIZE), 0, 1)
    raw.add_image(kspace + disturbance)
    for _ in range(50):
        # a quarter of the image's bandwidth: a quarter of the noise power
        line = raw.add(noise(200) / 2, ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
        line.sample_time_us = 16.0
    path = raw.write(tmp_path / "scan.h5")
    found = import_scan(path, tmp_path / "white")
    assert found.whitened
    scan = mrd.read_scan(path)
    matrix = scan.whitening()
    assert matrix is not None
    residual = np.einsum("ij,sjhw->ishw", matrix, disturbance).reshape(3, -1)
    assert np.abs(np.cov(residual) - np.eye(3)).max() < 0.05
    with h5py.File(tmp_path / "white" / "scan.h5") as file:
        whitened = file["kspace"][()] / file.attrs["scale"]
    expected = np.einsum("ij,sjhw->sihw", matrix, kspace + disturbance)
    assert np.abs(whitened - expected).max() < 1e-4 * np.abs(expected).max()
    plain = import_scan(path, tmp_path / "plain", whiten=False)
    assert not plain.whitened
    assert stored(tmp_path / "plain" / "scan.h5") == pytest.approx(
        target_of(kspace + disturbance), abs=1e-9
    )


def test_what_is_not_image_is_left_out_and_counted(tmp_path: Path) -> None:
    kspace = kspace_of(coil_images(slices=1, size=SIZE))
    raw = RawFile(size=SIZE).add_image(kspace)
    wrong = np.full((3, 24), 1e6)
    for flag in mrd.LEFT_OUT:
        raw.add(wrong, getattr(ismrmrd, flag), line=3)
    raw.add(wrong, line=3).encoding_space_ref = 1
    found = import_scan(raw.write(tmp_path / "scan.h5"), tmp_path / "out")
    assert found.left_out == {
        "navigators": 1,
        "phase correction lines": 1,
        "feedback data": 2,
        "dummy scans": 1,
        "surface coil correction lines": 1,
        "phase stabilisation lines": 2,
        "lines of encoding 1": 1,
    }
    assert stored(tmp_path / "out" / "scan.h5") == pytest.approx(target_of(kspace), abs=1e-9)


def _spiral(raw: RawFile) -> None:
    raw.header["trajectory"] = "spiral"


def _three_d(raw: RawFile) -> None:
    raw.header["z"] = 8


def _second_step(raw: RawFile) -> None:
    raw.lines[4].idx.kspace_encode_step_2 = 1


def _outside(raw: RawFile) -> None:
    raw.lines[4].idx.kspace_encode_step_1 = 20


def _shifted(raw: RawFile) -> None:
    raw.lines[4].center_sample = 11


def _interrupted(raw: RawFile) -> None:
    raw.lines.pop()


def _nan(raw: RawFile) -> None:
    raw.lines[4].data[0, 3] = np.nan


def _coils(raw: RawFile) -> None:
    raw.add(np.ones((2, 24)), line=4)


def _no_image(raw: RawFile) -> None:
    for line in raw.lines:
        line.set_flag(ismrmrd.ACQ_IS_NAVIGATION_DATA)


def _short_noise(raw: RawFile) -> None:
    raw.add(np.ones((3, 20)), ismrmrd.ACQ_IS_NOISE_MEASUREMENT)


def _noise_of_fewer_coils(raw: RawFile) -> None:
    for coils in (3, 2):
        raw.add(np.ones((coils, 100)), ismrmrd.ACQ_IS_NOISE_MEASUREMENT)


def _nan_in_noise(raw: RawFile) -> None:
    raw.add(np.full((3, 100), np.nan), ismrmrd.ACQ_IS_NOISE_MEASUREMENT)


def _equal_noise(raw: RawFile) -> None:
    raw.add(np.ones((3, 100)), ismrmrd.ACQ_IS_NOISE_MEASUREMENT)


def _no_matrix(raw: RawFile) -> None:
    raw.header["recon_y"] = 0


def _zeros(raw: RawFile) -> None:
    for line in raw.lines:
        line.data[:] = 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_spiral, "the trajectory is spiral: only Cartesian"),
        (_three_d, "the scan is 3-D"),
        (_second_step, "the scan is 3-D"),
        (_outside, r"line 20 of slice 1 belongs to column 20, .* matrix \(24 x 20\)"),
        (_shifted, "line 4 of slice 1 belongs to column 4, rows 1 to 25, outside"),
        (_interrupted, r"slices \[1\] of .* was the scan interrupted\?"),
        (_nan, "line 4 of slice 1 has NaN or Inf"),
        (_coils, "lines have 3 and 2 coils"),
        (_no_image, "no line of an image; left out: {'navigators': 40}"),
        (_short_noise, r"20 samples, too few for 3 coils, .*: use whiten=false"),
        (_noise_of_fewer_coils, r"noise scan has 2 coils, the image 3: use whiten=false"),
        (_nan_in_noise, r"100 samples, .* or NaN among them: use whiten=false"),
        (_equal_noise, "no noise, or the same: use whiten=false"),
        (_no_matrix, "reconSpace/matrixSize/y of the ISMRMRD header is 0"),
        (_zeros, "all samples are zero"),
    ],
)
def test_what_cannot_be_imported_is_refused_by_name(
    tmp_path: Path, spoil: Callable[[RawFile], None], message: str
) -> None:
    raw = RawFile(size=SIZE).add_image(kspace_of(coil_images(size=SIZE)))
    spoil(raw)
    with pytest.raises(VolumeError, match=rf"scan\.h5: .*{message}"):
        import_scan(raw.write(tmp_path / "scan.h5"), tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


def test_a_scan_that_ends_before_the_header_says_is_reported(tmp_path: Path) -> None:
    kspace = kspace_of(coil_images(size=SIZE))
    raw = RawFile(size=SIZE).add_image(kspace).add_image(kspace, lines=range(14), repetition=1)
    raw.add_image(kspace, lines=range(0, 20, 3), repetition=2)  # line 18 is the last of these
    found = import_scan(raw.write(tmp_path / "scan.h5"), tmp_path / "out")
    assert len(found.volumes) == 3
    assert found.missing == {"scan_repetition1.h5": "lines 14 to 19"}
    raw = RawFile(size=SIZE, header={"maximum": 14, "center": 5})  # partial Fourier
    raw.add_image(kspace[..., 5:])
    found = import_scan(raw.write(tmp_path / "partial.h5"), tmp_path / "out")
    assert found.volumes[0].acquired == (5, 20) and not found.missing


def test_other_files_and_links_are_refused(tmp_path: Path) -> None:
    raw = RawFile(size=SIZE).add_image(kspace_of(coil_images(size=SIZE)))
    path = raw.write(tmp_path / "scan.h5")
    with pytest.raises(VolumeError, match=r"no group 'other'; the file holds: dataset"):
        import_scan(path, tmp_path, dataset="other")
    link = tmp_path / "link.h5"
    with h5py.File(link, "w") as file:
        file["dataset/xml"] = "x"
        file["dataset/data"] = h5py.ExternalLink(str(path), "dataset/data")
    with pytest.raises(VolumeError, match=r"link\.h5: data is a link to another file"):
        import_scan(link, tmp_path / "out")
    with h5py.File(tmp_path / "numbers.h5", "w") as file:
        file["dataset/xml"], file["dataset/data"] = "x", [1.0]
    with pytest.raises(VolumeError, match=r"numbers\.h5: dataset/data does not hold acquisitions"):
        import_scan(tmp_path / "numbers.h5", tmp_path / "out")
    (tmp_path / "text.h5").write_text("text")
    with pytest.raises(VolumeError, match=r"text\.h5"):
        import_scan(tmp_path / "text.h5", tmp_path / "out")
    with pytest.raises(VolumeError, match=r"missing\.h5"):
        import_scan(tmp_path / "missing.h5", tmp_path / "out")
    import_scan(path, tmp_path / "out")
    with pytest.raises(FileExistsError, match="exists; choose another folder"):
        import_scan(path, tmp_path / "out")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ismrmrd", None)
    with pytest.raises(VolumeError, match="not installed: pip install ismrmrd"):
        import_scan(tmp_path / "scan.h5", tmp_path)
