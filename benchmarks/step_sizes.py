"""The sizes of data and networks that `benchmarks.step` measures, and a batch of each."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from banding_removal.data.batch import Batch, Example, collate
from banding_removal.data.masks import MaskSampler
from banding_removal.data.phantom.scan import make_volume
from banding_removal.data.phantom.spec import DEMO, MEDIUM, REAL_SIZE, PhantomSpec


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes of the data and of the networks."""

    phantom: PhantomSpec
    cascades: int
    chans: int
    pools: int
    sens_chans: int
    acs_lines: int
    adversary_chans: int
    steps: int  # timed in each run


TINY = replace(DEMO, kspace_size=(40, 36), target_size=(32, 32), coils=2, acquired=(0, 36))
DEV = Size(
    phantom=REAL_SIZE,
    cascades=6,
    chans=18,
    pools=4,
    sens_chans=8,
    acs_lines=16,
    adversary_chans=64,
    steps=3,
)
SIZES = {
    "tiny": Size(
        phantom=TINY,
        cascades=1,
        chans=2,
        pools=2,
        sens_chans=2,
        acs_lines=4,
        adversary_chans=4,
        steps=2,
    ),
    "medium": Size(
        phantom=MEDIUM,
        cascades=4,
        chans=8,
        pools=2,
        sens_chans=4,
        acs_lines=12,
        adversary_chans=12,
        steps=10,
    ),
    "dev": DEV,
    "paper": replace(DEV, cascades=12, steps=2),
}


def make_batch(size: Size, count: int = 1) -> Batch:
    """`count` slices of the phantom that show anatomy, undersampled as in training by one mask."""
    volume = make_volume(replace(size.phantom, slices=count + 2), seed=0)
    left, right = size.phantom.acquired
    sampler = MaskSampler(kind="magic", accelerations=(4,), acs=(size.acs_lines,))
    width = volume.kspace.shape[-1]
    mask = sampler.draw(width, np.random.RandomState(0), offset=left, acquired=(left, right))
    examples = [
        Example(
            measured=torch.from_numpy(volume.kspace[index])[..., mask.columns],
            mask=torch.from_numpy(mask.columns)[None, None],
            acs_lines=mask.acs_lines,
            target=torch.from_numpy(volume.target[index])[None].contiguous(),
            data_range=float(volume.target.max()),
            rotated=False,
            name="phantom",
            slice_index=index,
        )
        for index in range(1, count + 1)
    ]
    return collate(examples)
