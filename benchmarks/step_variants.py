"""What `benchmarks.step` measures: for each variant a training step, or inference of one slice."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar
from unittest import mock

import torch
from torch import Tensor, nn

from banding_removal.config.recipes import DIRECT
from banding_removal.config.renames import EVERY_NETWORK
from banding_removal.config.settings import Settings
from banding_removal.data.batch import Batch
from banding_removal.data.operators import center_crop
from banding_removal.model import layers
from banding_removal.model.predictors import reconstruct
from banding_removal.training.compute import fetch
from banding_removal.training.players import make_players
from banding_removal.training.schedule import settings_of_step
from banding_removal.training.step import (
    adversary_step,
    clip_all_gradients,
    predictor_step,
    step_optimizers,
    train_step,
)
from benchmarks import graphs, plain
from benchmarks.step_sizes import Size, make_batch

Variant = Literal[
    "plain",
    "plain-bf16",
    "plain-channels-last",
    "plain-bf16-channels-last",
    "plain-compile",  # the U-Nets by torch.compile, which generates no code for complex numbers
    "plain-bf16-compile",
    "plain-graphs",
    "plain-bf16-graphs",  # the whole step as a CUDA graph (benchmarks/graphs.py)
    "plain-bf16-compile-graphs",
    "ours",
    "ours-recompute",
    "ours-bf16",
    "ours-bf16-recompute",
    "ours-graphs",
    "ours-bf16-graphs",
    "ours-bf16-plain-layers",  # PyTorch's layers in place of our fused ones
    "ours-bf16-plain-layers-graphs",
    "ours-streaks",  # stage 2 with the direct loss
    "ours-bf16-streaks",
    "ours-bf16-streaks-graphs",
    "varnet",  # predictor=varnet: what fastmri computes
    "varnet-recompute",
    "varnet-bf16",
    "fastmri",
    "fastmri-bf16",
]
Stage = Literal["pretrain", "adversarial", "inference"]


# Of the difference between a graph and the step that it records, by whether it is in bfloat16.
GRAPH_TOLERANCE = {False: 1e-3, True: 3e-2}


class UnavailableError(Exception):
    """The variant cannot run here."""


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
    if device.type != "cuda" and "graphs" in variant:
        raise UnavailableError("CUDA graphs need a GPU")
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
        for module in predictor.modules():
            if isinstance(module, plain.UNet):
                module.compile(dynamic=False)
    players = plain.PlainPlayers.of(
        predictor, adversary if stage == "adversarial" else None, bfloat16="bf16" in variant
    )
    if stage == "inference":
        predictor.eval()
        return _inference(variant, lambda: players.reconstruct(batch), batch), predictor
    if "graphs" in variant:
        networks = [predictor] if players.adversary is None else [predictor, adversary]

        def step_optimizers() -> None:
            for optimizer in players.optimizers:
                optimizer.step()

        act = partial(plain.backward, players, batch)
        return _graphed_step(variant, act, networks, step_optimizers), predictor
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
    if "streaks" in variant:
        if stage != "adversarial":
            raise UnavailableError("it differs from ours in stage 2 only")
        settings = replace(settings, **DIRECT)
    players = make_players(settings, batch.masked_kspace.device)
    predictor = players.predictor
    if stage == "inference":
        if "bf16" in variant:
            raise UnavailableError("reconstructions are float32")
        predictor.eval()
        return _inference(variant, lambda: reconstruct(predictor, batch), batch), predictor
    step = settings_of_step(settings, epochs=0, step=1)
    if "graphs" not in variant:
        return _with_layers_of(variant, lambda: train_step(players, [[batch]], step)), predictor

    def act() -> dict[str, Tensor]:
        reconstructions, metrics = predictor_step(players, [batch], step)
        if step.trains_adversary:
            metrics |= adversary_step(players, reconstructions, step)
        return metrics | clip_all_gradients(players, step)

    networks = [predictor] if players.adversary is None else [predictor, players.adversary]
    return _graphed_step(
        variant, _with_layers_of(variant, act), networks, lambda: step_optimizers(players, step)
    ), predictor


Result = TypeVar("Result")


def _with_layers_of(variant: str, function: Callable[[], Result]) -> Callable[[], Result]:
    """The function, with PyTorch's layers in all U-Nets if the variant asks for them."""
    if "plain-layers" not in variant:
        return function

    def with_plain_layers() -> Result:
        with mock.patch.object(layers, "FUSED_ON", ()):
            return function()

    return with_plain_layers


def _graphed_step(
    variant: str,
    act: graphs.Act,
    networks: Sequence[nn.Module],
    step_optimizers: Callable[[], object],
) -> Callable[[], dict[str, float]]:
    """A step whose act is a graph. It is compared with the act itself first.

    Raises:
        RuntimeError: they differ by more than rounding.
    """
    graph = graphs.graphed(act, networks)
    differences = graphs.compare(act, graph, networks, GRAPH_TOLERANCE["bf16" in variant])

    def step() -> dict[str, float]:
        (values,) = fetch([graph()])
        if not all(map(math.isfinite, values.values())):
            raise FloatingPointError(f"{values}")
        step_optimizers()
        return values | differences

    return step


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


def _inference(variant: str, act: Callable[[], Tensor], batch: Batch) -> Callable[[], Tensor]:
    """The image, cropped and on the CPU, as `reconstruction.folder` writes it."""
    assert batch.target is not None
    height, width = batch.target.shape[-2:]
    act = _with_layers_of(variant, act)
    if "graphs" in variant:
        act = _graph_of(act)

    def infer() -> Tensor:
        with torch.no_grad():
            return center_crop(act(), (height, width)).cpu()

    return infer


@torch.no_grad()
def _graph_of(inference: Callable[[], Tensor]) -> Callable[[], Tensor]:
    graph = graphs.graphed(lambda: {"image": inference()})
    return lambda: graph()["image"]
