"""Settings as a checkpoint of an earlier version has them."""

from typing import Any

from banding_removal.config.overrides import plain
from banding_removal.config.renames import EVERY_NETWORK
from banding_removal.config.settings import Settings

OLD_NAMES = {
    "adversary_from_epoch": "warmup_adversary_from",
    "adversary_term_from_epoch": "adversary_epoch_from",
    "adversary_pretrain_steps": "adversary_warmup_steps",
    "adversary_pretrain_slices": "adversary_warmup_slices",
}


def as_saved_before_renames(settings: Settings) -> dict[str, Any]:
    """The same settings before stages, recipes and init_from were settings."""
    old = {OLD_NAMES.get(key, key): value for key, value in plain(settings).items()}
    del old["stage"], old["recipe"]
    init_from = old.pop("init_from")
    is_path = init_from is not None and "/" in init_from
    old |= {"restart": init_from if is_path else None, "after": None if is_path else init_from}
    old["recompute"] = {0: "auto", EVERY_NETWORK: "all"}[old["recompute"]]
    return {**old, "rollback_lowers": "everything"}
