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
    # Runs without a saved stage were stage 2 if they had a loss against banding, or began from the
    # newest run of a name.
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
    """Answer `key=value` words that have an old name or value.

    Raises:
        ConfigError: one line with the words to write instead.
    """
    answers = []
    for word in words:
        key, _, value = word.partition("=")
        new = f"{NEW_NAMES.get(key, key)}={NEW_VALUES.get(key, {}).get(value, value)}"
        if key in RETIRED:
            answers.append(f"{key} is no longer a setting: leave it out")
        elif new != word:
            answers.append(f"{word} is now {new}")
    if answers:
        raise ConfigError("; ".join(answers))
