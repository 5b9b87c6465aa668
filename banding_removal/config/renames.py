"""Old names and values of settings: saved ones are translated, typed ones answered with the new."""

from collections.abc import Sequence
from typing import Any

from banding_removal.errors import ConfigError

# Of two old names that became one, the first that has a value counts.
NEW_NAMES = {
    "restart": "init_from",
    "after": "init_from",
    "warmup_adversary_from": "adversary_from_epoch",
    "adversary_epoch_from": "adversary_term_from_epoch",
    "adversary_warmup_steps": "adversary_pretrain_steps",
    "adversary_warmup_slices": "adversary_pretrain_slices",
}
EVERY_NETWORK = 1000  # more than any predictor has
NEW_VALUES: dict[str, dict[str, Any]] = {
    "recompute": {"auto": 0, "none": 0, "all": EVERY_NETWORK},
    "recipe": {"ours": "direct"},
}
RETIRED = ("rollback_lowers",)  # trained weights do not depend on these


def with_new_names(saved: dict[str, Any]) -> dict[str, Any]:
    """Settings saved by any version, under the names and values of this one."""
    # Before there was a stage, the means against banding told it, or what the run began from.
    against_banding = saved.get("adversary") or saved.get("streak_weight") or saved.get("after")
    settings = {"stage": "train" if against_banding else "pretrain"}
    for key, value in saved.items():
        if key in NEW_VALUES and isinstance(value, str):
            value = NEW_VALUES[key].get(value, value)
        if key not in NEW_NAMES and key not in RETIRED:
            settings[key] = value
    for old, new in NEW_NAMES.items():
        if old in saved and settings.get(new) is None:
            settings[new] = saved[old]
    return settings


def refuse_old_words(words: Sequence[str]) -> None:
    """Answer `key=value` words with an old name or value.

    Raises:
        ConfigError: one line with the words to write instead.
    """
    for word in words:
        key, _, value = word.partition("=")
        new_key = NEW_NAMES.get(key, key)
        new_value = NEW_VALUES.get(key, {}).get(value, value)
        if (new_key, new_value) != (key, value):
            raise ConfigError(f"{word} is now {new_key}={new_value}")
        if key in RETIRED:
            raise ConfigError(f"{key} is no longer a setting: leave it out")
