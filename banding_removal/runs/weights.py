"""States from a file, loaded into a network or an optimiser that they must fit."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from banding_removal.errors import CheckpointError
from banding_removal.model.predictors import KNOWN

MAX_NAMED = 5  # differences in a message


def load_weights(model: nn.Module, weights: dict[str, Any], path: Path) -> None:
    """Load a complete state dict; numbers in another precision are converted.

    Raises:
        CheckpointError: keys, kinds of numbers or shapes differ; the message lists the first ones.
    """
    own = model.state_dict()
    problems = [f"  {key}: only in the model" for key in own if key not in weights]
    problems += [f"  {key}: only in the checkpoint" for key in weights if key not in own]
    problems += [
        f"  {key}: {_kind(weights[key])} in the checkpoint, {_kind(value)} in the model"
        for key, value in own.items()
        if key in weights and not _converts(weights[key], value)
    ]
    if problems:
        more = [f"  and {len(problems) - MAX_NAMED} more"] if len(problems) > MAX_NAMED else []
        raise CheckpointError(
            f"{path} does not fit the model. Check predictor ({KNOWN}), cascades, chans, pools and "
            f"sens_chans; {len(problems)} difference(s):\n" + "\n".join(problems[:MAX_NAMED] + more)
        )
    model.load_state_dict(weights)


def _converts(value: Any, own: Tensor) -> bool:
    """Whether a stored value can be loaded into a model's own tensor."""
    if isinstance(value, Tensor) and value.is_floating_point() and own.is_floating_point():
        return value.shape == own.shape
    return _kind(value) == _kind(own)


def _kind(value: Any) -> str:
    """Type and shape."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{value.dtype} {tuple(value.shape)}".removeprefix("torch.")


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], path: Path) -> None:
    """Load an optimiser's state.

    Raises:
        CheckpointError: it does not belong to these parameters.
    """
    try:
        optimizer.load_state_dict(state)
        misfits = [
            f"{_kind(item)} for {_kind(parameter)}"
            for parameter, of_parameter in optimizer.state.items()
            for item in of_parameter.values()
            if not isinstance(item, Tensor) or item.shape not in (parameter.shape, ())
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: the optimiser's state does not fit: {error!r}") from error
    if misfits:
        raise CheckpointError(f"{path}: the optimiser's state does not fit: {misfits[0]}")
