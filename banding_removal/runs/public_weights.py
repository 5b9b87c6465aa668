"""Files of weights alone, as other software saves them: which network they are of.

Known are state dicts of the public `fastmri.models.VarNet`, plain or in a Lightning checkpoint of
`VarNetModule`. They are read as data, like every checkpoint (`runs/safe_load.py`).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from banding_removal.config.settings import Settings
from banding_removal.data.filters import VolumeFilter
from banding_removal.errors import CheckpointError
from banding_removal.model.predictors import KNOWN
from banding_removal.model.varnet import VarNet

LIGHTNING_PREFIX = "varnet."  # of the network in a `VarNetModule`
MAX_NAMED = 5  # keys in a message
NETWORK_SETTINGS = ("predictor", "cascades", "chans", "pools", "sens_chans", "sens_pools")


def weights_in(content: Any) -> dict[str, Tensor] | None:
    """The state dict that a file holds; None if it holds something else.

    Args:
        content: plain data. Beside the entry `state_dict` of a Lightning checkpoint, all entries
            are ignored, and in it all keys without the network's prefix.
    """
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
        of_network = {
            key.removeprefix(LIGHTNING_PREFIX): value
            for key, value in content.items()
            if isinstance(key, str) and key.startswith(LIGHTNING_PREFIX)
        }
        content = of_network or content
    if not isinstance(content, dict) or not content:
        return None
    is_weights = all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    return content if is_weights else None


def public_settings(weights: dict[str, Any], path: Path) -> Settings:
    """Settings with the network that these weights are of, and the masks it was trained for.

    The masks are those of the package's VarNet at acceleration 4: 8 % of the lines in the centre,
    drawn by file name.

    Raises:
        CheckpointError: they fit no known network; the first keys that do not fit are named.
    """
    cascades = {key.split(".")[1] for key in weights if key.startswith("cascades.")}
    chans, pools = _unet_size(weights, "cascades.0.model.unet.")
    sens_chans, sens_pools = _unet_size(weights, "sens_net.norm_unet.unet.")
    sizes: dict[str, Any] = {
        "cascades": max(len(cascades), 1),
        "chans": chans,
        "pools": pools,
        "sens_chans": sens_chans,
        "sens_pools": sens_pools,
    }
    with torch.device("meta"):
        shapes = VarNet(**sizes, sens_identity=False).state_dict()
    problems = [
        f"{key}: unknown" if key not in shapes else f"{key}: has shape {tuple(value.shape)}"
        for key, value in weights.items()
        if key not in shapes or shapes[key].shape != value.shape
    ]
    problems += [f"{key}: missing" for key in shapes if key not in weights]
    if problems:
        named = "".join(f"\n  {problem}" for problem in problems[:MAX_NAMED])
        raise CheckpointError(
            f"{path} has the weights of another network. As those of varnet (the public "
            f"fastmri.models.VarNet), {len(problems)} keys do not fit, the first of them:{named}\n"
            f"predictor can be {KNOWN}; cascade is read from this project's checkpoints"
        )
    return Settings(
        predictor="varnet",
        **sizes,
        mask="fastmri_equispaced_fraction",
        accelerations=(4,),
        acs_fractions=(0.08,),
        offsets_from_data=False,
        val_filter=VolumeFilter(),
    )


def _unet_size(weights: dict[str, Any], prefix: str) -> tuple[int, int]:
    """Channels and poolings of a public U-Net; (1, 1) if its first layer is not there."""
    first = weights.get(f"{prefix}down_sample_layers.0.layers.0.weight")
    if first is None or first.ndim != 4:
        return 1, 1
    down = f"{prefix}down_sample_layers."
    levels = {key.removeprefix(down).split(".")[0] for key in weights if key.startswith(down)}
    return len(first), len(levels)
