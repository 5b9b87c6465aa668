"""What `benchmarks.step` measures: for each variant a training step, or inference of one slice."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from banding_removal.config.recipes import DIRECT
from banding_removal.config.renames import EVERY_NETWORK
from banding_removal.config.settings import Settings
from banding_removal.data.batch import Batch, Example, collate
from banding_removal.data.masks import MaskSampler
from banding_removal.data.operators import center_crop
from banding_removal.data.phantom.scan import make_volume
from banding_removal.data.phantom.spec import DEMO, MEDIUM, REAL_SIZE, PhantomSpec
from banding_removal.training.players import make_players
from banding_removal.training.schedule import settings_of_step
from banding_removal.training.step import train_step
from benchmarks import plain

Variant = Literal[
    "plain",
    "plain-bf16",
    "plain-channels-last",
    "plain-bf16-channels-last",
    "plain-compile",  # the predictor by torch.compile
    "plain-bf16-compile",
    "ours",
    "ours-recompute",
    "ours-bf16",
    "ours-bf16-recompute",
    "ours-streaks",  # stage 2 with the direct loss
    "varnet",  # predictor=varnet: what fastmri computes
    "varnet-recompute",
    "varnet-bf16",
    "fastmri",
    "fastmri-bf16",
]
Stage = Literal["pretrain", "adversarial", "inference"]


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


class UnavailableError(Exception):
    """The variant cannot run here."""


def make_batch(size: Size, count: int = 1) -> Batch:
    """So many slices of the phantom that show anatomy, undersampled as in training, by one mask."""
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


def prepare(
    variant: str, stage: str, size: Size, device: torch.device, slices: int = 1
) -> tuple[Callable[[], object], nn.Module]:
    """A function that runs one step of the variant in that stage, and the predictor it runs.

    Args:
        variant: see `Variant`.
        stage: see `Stage`.
        size: of data and networks.
        device: to run on.
        slices: in a step.

    Raises:
        UnavailableError: the variant cannot run here or does not have this stage.
    """
    torch.manual_seed(0)
    batch = make_batch(size, slices).to(device)
    if variant.startswith(("ours", "varnet")):
        return _ours(variant, stage, size, batch)
    public = variant.startswith("fastmri")
    if public and stage == "adversarial":
        raise UnavailableError("it has no adversary")
    predictor = (_fastmri(size) if public else _plain(size)).to(device)
    adversary = plain.ShallowAdversary(size.adversary_chans).to(device)
    if "channels-last" in variant:
        predictor = predictor.to(memory_format=torch.channels_last)
        adversary = adversary.to(memory_format=torch.channels_last)
    if "compile" in variant:
        predictor.compile()
    players = plain.PlainPlayers.of(
        predictor, adversary if stage == "adversarial" else None, bfloat16="bf16" in variant
    )
    if stage == "inference":
        predictor.eval()
        return lambda: _infer(players.reconstruct, batch), predictor
    return lambda: plain.train_step(players, batch), predictor


def _ours(
    variant: str, stage: str, size: Size, batch: Batch
) -> tuple[Callable[[], object], nn.Module]:
    settings = Settings(
        predictor="varnet" if variant.startswith("varnet") else "cascade",
        cascades=size.cascades,
        chans=size.chans,
        pools=size.pools,
        sens_chans=size.sens_chans,
        acs_lines=(size.acs_lines,),
        lr=1e-4,
        stage="pretrain" if stage == "pretrain" else "train",
        adversary="shallow" if stage == "adversarial" else None,
        adversary_chans=size.adversary_chans,
        **numerics_of(variant),
    )
    if variant == "ours-streaks":
        if stage != "adversarial":
            raise UnavailableError("it differs from ours in stage 2 only")
        settings = replace(settings, **DIRECT)
    players = make_players(settings, batch.masked_kspace.device)
    predictor = players.predictor
    if stage == "inference":
        predictor.eval()
        return lambda: _infer(
            lambda one: predictor(one.masked_kspace, one.mask, one.acs_lines), batch
        ), predictor
    step = settings_of_step(settings, epochs=0, step=1)
    return lambda: train_step(players, [[batch]], step), predictor


def numerics_of(variant: str) -> dict[str, Any]:
    """The settings in which the variants of `ours` and `varnet` differ."""
    return {
        "precision": "bfloat16" if "bf16" in variant else "float32",
        "recompute": EVERY_NETWORK if "recompute" in variant else 0,
    }


def _plain(size: Size) -> nn.Module:
    return plain.PlainPredictor(
        cascades=size.cascades, chans=size.chans, pools=size.pools, sens_chans=size.sens_chans
    )


def _fastmri(size: Size) -> nn.Module:
    try:
        from fastmri.models import VarNet
    except ImportError as error:
        raise UnavailableError(f"{error} (pip install fastmri)") from error

    class AsOurs(nn.Module):
        """The public network, called with this project's arguments."""

        def __init__(self) -> None:
            super().__init__()
            self.varnet = VarNet(
                num_cascades=size.cascades,
                sens_chans=size.sens_chans,
                sens_pools=size.pools,
                chans=size.chans,
                pools=size.pools,
            )

        def forward(self, masked_kspace: Tensor, mask: Tensor, acs_lines: Tensor) -> Tensor:
            lines = int(acs_lines[0])
            image = self.varnet(torch.view_as_real(masked_kspace), mask[..., None], lines)
            return image[:, None]

    return AsOurs()


def _infer(reconstruct: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
    """The image, cropped and on the CPU, as `reconstruction.folder` writes it."""
    assert batch.target is not None
    height, width = batch.target.shape[-2:]
    with torch.no_grad():
        return center_crop(reconstruct(batch), (height, width)).cpu()
