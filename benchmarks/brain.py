"""Volumes with the anatomy of a head, to check results on more than the phantom knee.

The anatomy is the MNI ICBM 152 template (the average of 152 T1-weighted brains, 1 mm), which the
public nilearn package contains: `pip download nilearn --no-deps` and unpack
`nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz`. For each volume the
template is rotated, scaled and sheared at random, cut along one of three planes, and given one of
two contrasts. Coils, image phase and noise are those of the phantom knee.
"""

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from banding_removal.data.phantom.files import claim_folder, volume_seeds, write_volume
from banding_removal.data.phantom.receiver import Receiver
from banding_removal.data.phantom.scan import SIGNAL_LEVEL, PhantomVolume, scan
from banding_removal.data.phantom.shapes import Grid, log_uniform
from banding_removal.data.phantom.spec import PhantomSpec
from banding_removal.data.phantom.tissues import Contrast

SIZE = 0.66  # scale of the head, so that it fits into the phantom's coils
# template axes along the rows and the columns of a slice, and across slices
PLANES = ((1, 0, 2), (2, 0, 1), (2, 1, 0))  # axial, coronal, sagittal
TYPES = {2: np.uint8, 4: np.int16, 8: np.int32, 16: np.float32, 64: np.float64}


def read_template(path: Path) -> NDArray[np.float32]:
    """A head from a compressed NIfTI-1 file, float32 (left-right, back-front, foot-head), 0 to 1.

    Raises:
        OSError: the file does not exist or is not compressed.
        ValueError: it is not a NIfTI-1 volume of a known type.
    """
    content = gzip.decompress(path.read_bytes())
    header = np.frombuffer(content[:348], dtype=np.uint8)
    if len(header) < 348 or header[:4].view("<i4")[0] != 348:
        raise ValueError(f"{path} is not a NIfTI-1 file")
    dimensions = header[40:56].view("<i2")
    code, start = int(header[70:72].view("<i2")[0]), int(header[108:112].view("<f4")[0])
    if dimensions[0] != 3 or code not in TYPES:
        raise ValueError(
            f"{path}: {dimensions[0]} axes of type {code}, expected 3 of {list(TYPES)}"
        )
    shape = tuple(map(int, dimensions[1:4]))
    values = np.frombuffer(content, TYPES[code], count=int(np.prod(shape)), offset=start)
    volume = values.reshape(shape, order="F").astype(np.float32)
    return volume / volume.max()


def make_brain(spec: PhantomSpec, template: NDArray[np.float32], seed: int) -> PhantomVolume:
    """All slices of one head; arguments and result as in `data.phantom.scan.make_volume`."""
    streams = np.random.SeedSequence(seed).spawn(3)
    shape, coil, noise = (np.random.default_rng(stream) for stream in streams)
    inverted = bool(shape.random() < spec.fat_suppressed_share)  # like a T2-weighted image
    contrast: Contrast = "PDFS" if inverted else "PD"
    plane = PLANES[shape.integers(len(PLANES))]
    turn = Rotation.from_rotvec(shape.normal(0, 0.12, 3)).as_matrix()
    linear = turn @ (np.diag(shape.uniform(0.9, 1.1, 3)) + shape.normal(0, 0.03, (3, 3))) / SIZE
    gamma = float(shape.uniform(0.8, 1.3))
    level = log_uniform(shape, *SIGNAL_LEVEL[contrast])
    sigma = level * log_uniform(shape, *spec.noise) * (1 if inverted else 0.5)

    grid = Grid.of(spec.kspace_size, spec.pixel_mm)
    receiver = Receiver.draw(coil, spec.coils, spec.coil_radius_mm)

    def anatomy(z: float) -> NDArray[np.float32]:
        image = _cut(template, linear, plane, grid, z) ** np.float32(gamma)
        return np.where(image > 0.1, np.float32(1.1) - image, image) if inverted else image

    kspace, target = scan(spec, anatomy, receiver, level, sigma, noise)
    return PhantomVolume(
        spec=spec,
        seed=seed,
        contrast=contrast,
        kspace=kspace,
        target=target,
        noise_sigma=sigma,
        system_model="Phantom_A",
    )


def _cut(
    template: NDArray[np.float32],
    linear: NDArray[np.float64],
    plane: tuple[int, int, int],
    grid: Grid,
    z: float,
) -> NDArray[np.float32]:
    """A slice (H, W) through the template, z mm from its centre."""
    y, x = np.broadcast_arrays(grid.y, grid.x)
    places = np.empty((3, *y.shape))
    places[plane[0]], places[plane[1]], places[plane[2]] = -y, x, z
    middle = (np.array(template.shape) - 1) / 2
    voxels = np.tensordot(linear, places, axes=1) + middle[:, None, None]
    return np.clip(map_coordinates(template, voxels, order=1), 0, 1).astype(np.float32)


def write_brains(
    folder: Path,
    spec: PhantomSpec,
    template: Path,
    *,
    train_volumes: int,
    val_volumes: int,
    seed: int,
) -> None:
    """Fill the folder of a data set as `data.phantom.files.write_dataset` does."""
    seeds = volume_seeds(folder, seed, train_volumes, val_volumes)
    claim_folder(folder, spec, seed)
    head = read_template(template)
    for path, of_volume in seeds.items():
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            write_volume(path, make_brain(spec, head, of_volume))
