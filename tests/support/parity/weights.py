"""The published models' weights, which a rule gives, and their names there and here."""

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from banding_removal.model.classifiers import Architecture, Ensemble, build_adversary
from banding_removal.model.predictor import Predictor
from tests.support.parity.compare import load_json

PREDICTORS: dict[str, dict[str, Any]] = {
    "predictor_odd_p2": {"cascades": 2, "chans": 4, "sens_chans": 4, "pools": 2},
    "predictor_tiny_p4": {"cascades": 2, "chans": 8, "sens_chans": 8, "pools": 4},
}
ADVERSARY_NAMES = {  # ours -> published; torchvision's are the same
    "stem.": "conv_img.",
    "head.": "fc.",
    "blocks.": "resnet.",
    "norm_in": "norm_0",
    "norm_out": "norm_1",
    "conv_in": "conv_0",
    "conv_out": "conv_1",
    "shortcut": "conv_s",
}


def golden_weight(name: str, shape: list[int], position: int) -> Tensor:
    """A weight by the published rule: a hash of element and position, scaled by the fan-in.

    Args:
        name: in the published state dict.
        shape: of the weight.
        position: of the name among the sorted names of the state dict.
    """
    count = int(np.prod(shape))
    k = np.arange(count, dtype=np.float64)
    hashed = np.abs(np.sin(12.9898 * (k + 1) + 78.233 * (position + 1))) * 43758.5453
    value = 2 * (hashed - np.floor(hashed)) - 1
    if len(shape) >= 2:
        value = np.sqrt(3 / np.prod(shape[1:])) * value
    elif name.endswith(("weight", "lambda_")):
        value = 1 + 0.2 * value
    else:
        value = 0.1 * value
    return torch.from_numpy(value.astype(np.float32).reshape(shape))


def published_name(name: str) -> str:
    """Name of a predictor's parameter in the published code."""
    part, _, rest = name.partition(".unet.unet.")
    if part == "sensitivity":
        head = "model_sens.2.model.1.model.model.0."
    else:
        cascade = name.split(".")[1]
        if name.endswith("dc_weight"):
            return f"model.{cascade}.lambda_"
        head = f"model.{cascade}.net.1.model.model.0."
    stage, *keys, kind = rest.split(".")
    layer = {"first": "layer1.0", "second": "layer2.0"}
    if stage in ("down", "up"):
        return f"{head}{stage}_sample_layers.{keys[0]}.{layer[keys[1]]}.{kind}"
    if stage == "bottom":
        return f"{head}conv.{layer[keys[0]]}.{kind}"
    return f"{head}conv2.{keys[0]}.{kind}"


def golden_predictor(name: str, dtype: str) -> Predictor:
    """The predictor of a golden file with its weights, in float32 or float64."""
    position = {key: i for i, (key, _) in enumerate(sorted(load_json(name)["state_shapes"]))}
    predictor = Predictor(**PREDICTORS[name])
    weights = {
        own: golden_weight(published_name(own), list(w.shape), position[published_name(own)])
        for own, w in predictor.state_dict().items()
    }
    predictor.load_state_dict(weights)
    return predictor.to(getattr(torch, dtype))


def published_adversary_name(name: str) -> str:
    """Name of an adversary's parameter in the published code; the same for all members."""
    name = re.sub(r"^members\.\d+\.", "", name)
    for ours, theirs in ADVERSARY_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def published_adversary_order(names: list[str]) -> list[str]:
    """Published names in the order of the golden gradient norms: as the layers are run."""
    layers = ("norm_0", "conv_0", "norm_1", "conv_1", "conv_s")

    def key(name: str) -> tuple[int, ...]:
        *path, kind = name.split(".")
        stage = ("conv_img", "resnet", "fc").index(path[0])
        block = (int(path[1]), layers.index(path[2])) if stage == 1 else ()
        return (stage, *block, kind == "bias")

    return sorted(names, key=key)


def golden_adversary(
    architecture: Architecture, dtype: str = "float64", *, members: int = 1
) -> Ensemble:
    """Adversaries with the published weights, every member with the same."""
    shapes = load_json("adversaries_state_shapes")[architecture]
    position = {name: i for i, name in enumerate(sorted(name for name, _ in shapes))}
    adversary = build_adversary(architecture, members=members)
    weights = {}
    for name, weight in adversary.state_dict().items():
        key = published_adversary_name(name)
        weights[name] = golden_weight(key, list(weight.shape), position[key])
    adversary.load_state_dict(weights)
    return adversary.to(getattr(torch, dtype))
