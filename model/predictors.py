"""The predictors by name, and those of other code.

A predictor is a module with `forward(masked_kspace, mask, acs_lines) -> image`, as documented in
`docs/predictors.md`. To add one to this project, enter it in `PREDICTORS`. One that stays elsewhere
is named package.module:Class.
"""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from banding_removal.data.batch import Batch
from banding_removal.model.predictor import Predictor, UnrolledNetwork
from banding_removal.model.varnet import VarNet

# What the setting `predictor` accepts, beside package.module:Class. Each class is called with the
# settings cascades, chans, pools, sens_chans, sens_pools, sens_identity and dropout.
PREDICTORS: dict[str, type[nn.Module]] = {"cascade": Predictor, "varnet": VarNet}
UNROLLED = [name for name, made in PREDICTORS.items() if issubclass(made, UnrolledNetwork)]
KNOWN = f"{', '.join(PREDICTORS)}, or package.module:Class for code of your own"


def is_elsewhere(name: str) -> bool:
    """Whether `name` is of the form package.module:Class."""
    module, colon, attribute = name.partition(":")
    parts = (*module.split("."), attribute)
    return colon == ":" and all(part.isidentifier() for part in parts)


def build(name: str, sizes: Mapping[str, Any], arguments: Mapping[str, Any]) -> nn.Module:
    """The predictor called `name`. Code outside this project is imported here: trust the name.

    Args:
        name: of `PREDICTORS`, or package.module:Class.
        sizes: arguments of those in `PREDICTORS`.
        arguments: further ones; all of them, for a class that is elsewhere.

    Raises:
        ValueError: there is no such predictor, it cannot be imported, or it does not accept these
            arguments.
    """
    if is_elsewhere(name):
        make = _imported(name)
    elif name in PREDICTORS:
        make, arguments = PREDICTORS[name], {**sizes, **arguments}
    else:
        raise ValueError(f"predictor {name!r} is not one of: {KNOWN}")
    try:
        inspect.signature(make).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"predictor {name} with predictor_kwargs: {error}") from error
    network = make(**arguments)
    if not isinstance(network, nn.Module):
        raise ValueError(f"predictor {name} is a {type(network).__name__}, not a torch.nn.Module")
    return network


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ValueError(
            f"predictor {name}: {error}; the folder that holds {module.partition('.')[0]} must be "
            "installed or in PYTHONPATH"
        ) from error
    except AttributeError as error:
        raise ValueError(f"predictor {name}: {error}") from error


def reconstruct(network: nn.Module, batch: Batch) -> Tensor:
    """A predictor's image of a batch, real (B, 1, H, W), in float32 at least.

    `UnrolledNetwork.forward` is also given which columns are measured, because the batch knows.

    Args:
        network: the predictor, wrapped for distributed training or not.
        batch: on the network's device.

    Raises:
        ValueError: see `checked_image`.
    """
    bare = network.module if isinstance(network, DistributedDataParallel) else network
    # A subclass may have a `forward` of its own.
    takes_index = isinstance(bare, UnrolledNetwork) and (
        type(bare).forward is UnrolledNetwork.forward
    )
    more = {"index": batch.measured_columns} if takes_index else {}
    output = network(batch.masked_kspace, batch.mask, batch.acs_lines, **more)
    return checked_image(output, batch.masked_kspace)


def checked_image(output: Tensor, masked_kspace: Tensor) -> Tensor:
    """A predictor's output, in float32 if it is in a lower precision (under autocast).

    Raises:
        ValueError: it is not a real image (B, 1, H, W) of the size of k-space (B, coil, H, W).
    """
    batch, _, height, width = masked_kspace.shape
    if output.shape != (batch, 1, height, width) or not output.is_floating_point():
        raise ValueError(
            f"a predictor returns real images {(batch, 1, height, width)} for k-space "
            f"{tuple(masked_kspace.shape)}; this one returned {output.dtype} {tuple(output.shape)}"
        )
    return output.to(torch.promote_types(output.dtype, torch.float32))


def with_recomputation(predictor: nn.Module, networks: int) -> nn.Module:
    """What training calls in place of `predictor`, so that it stores less for the backward pass.

    Args:
        predictor: its attribute `recomputed` is set.
        networks: setting `recompute`: number of networks that are recomputed in the backward pass.
            A network of other code is recomputed as a whole.
    """
    predictor.recomputed = networks  # type: ignore[assignment]
    if isinstance(predictor, UnrolledNetwork) or networks == 0:
        return predictor
    return _Recomputed(predictor)


def recomputation(predictor: nn.Module) -> tuple[int, int]:
    """How many networks of a predictor are recomputed, and how many there are."""
    networks = 1
    if isinstance(predictor, UnrolledNetwork):
        networks += len(predictor.cascades)
    return getattr(predictor, "recomputed", 0), networks


class _Recomputed(nn.Module):
    """A network that stores its input alone, and runs again in the backward pass."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, masked_kspace: Tensor, mask: Tensor, acs_lines: Tensor) -> Tensor:
        image: Tensor = checkpoint(
            self.network, masked_kspace, mask, acs_lines, use_reentrant=False
        )
        return image
