"""The phantom's files read by the rules of the public fastMRI package, and by that package."""

import warnings
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import h5py
import numpy as np
import pytest

from banding_removal.data.phantom.files import write_dataset
from banding_removal.data.phantom.spec import DEMO
from banding_removal.data.volume import read_volume

SPEC = replace(
    DEMO, kspace_size=(48, 40), target_size=(32, 32), acquired=(3, 36), slices=4, coils=3
)
NAMESPACE = "{http://www.ismrm.org/ISMRMRD}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset(tmp_path, SPEC, train_volumes=1, val_volumes=1, seed=3)
    return tmp_path / "multicoil_train"


def header_number(root: ElementTree.Element, *tags: str) -> int:
    text = root.findtext("/".join(NAMESPACE + tag for tag in tags))
    assert text is not None, tags
    return int(text)


def test_a_phantom_file_obeys_the_rules_of_the_public_reader(folder: Path) -> None:
    path = next(folder.glob("*.h5"))
    with h5py.File(path) as file:
        root = ElementTree.fromstring(file["ismrmrd_header"][()])
        assert file["kspace"].shape == (4, 3, 48, 40)
        assert file["reconstruction_rss"].shape == (4, 32, 32)
        assert "mask" not in file
        attributes = dict(file.attrs)
    encoded = [header_number(root, "encoding", "encodedSpace", "matrixSize", a) for a in "xyz"]
    recon = [header_number(root, "encoding", "reconSpace", "matrixSize", a) for a in "xyz"]
    limits = ("encoding", "encodingLimits", "kspace_encoding_step_1")
    left = encoded[1] // 2 - header_number(root, *limits, "center")
    right = left + header_number(root, *limits, "maximum") + 1
    assert (left, right) == SPEC.acquired == read_volume(path).acquired
    assert encoded == [48, 40, 1]
    assert recon == [32, 32, 1]
    assert {"acquisition", "max", "norm", "patient_id"} <= set(attributes)


def test_the_public_package_reads_a_phantom_and_agrees_on_its_target(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fastmri = pytest.importorskip("fastmri")
        from fastmri.data import SliceDataset, transforms

        kspace, _, target, attributes, _, _ = SliceDataset(root=folder, challenge="multicoil")[2]
        coil_images = fastmri.ifft2c(transforms.to_tensor(kspace))
        image = fastmri.rss(fastmri.complex_abs(coil_images))
        cropped = transforms.center_crop(image, target.shape).numpy()
    assert (attributes["padding_left"], attributes["padding_right"]) == SPEC.acquired
    np.testing.assert_allclose(cropped, target, rtol=0, atol=1e-5 * target.max())
