"""Ways to train against banding, as plain settings: `recipe=ours`, `=adversary`, `=paper`.

A recipe says what stands against banding and how it is weighted, not for how long or on what
networks. Its settings are laid over a script's; words on the command line are laid over both.
docs/results.md has the figures.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from banding_removal.config.settings import Settings
from banding_removal.errors import ConfigError

WORD = "recipe="

# As published: one slice a step in one of the two orientations, one logit for it.
PAPER: dict[str, Any] = {
    "paired": False,
    "adversary": "shallow",
    "adversary_members": 1,
    "adversary_chans": None,
    "adversary_strength": 1.0,
    "adversary_target": "uncertain",
    "adversary_changes": "everything",
    "adversary_view": "image",
    "adversary_lr": 1e-4,
    "adversary_betas": (0.9, 0.999),
    "adversary_epoch_from": 1,
    "adversary_ramp_steps": 0,
    "warmup_adversary_from": 1,
    "adversary_warmup_steps": 0,
    "adversary_replay": 0,
    "reg_param": 0.1,
    "penalty_every": 1,
    "streak_weight": 0.0,
    "trained_cascades": None,
}

# The direct term in place of an adversary.
OURS: dict[str, Any] = {**PAPER, "adversary": None, "streak_weight": 0.0175}
# An adversary that learns in minutes: both orientations in every step, earlier reconstructions, a
# grid of logits and a start ahead. With one reconstruction a step and none of these it stays at
# chance for longer. Part of what it does is texture written across the streaks.
ADVERSARY: dict[str, Any] = {
    **PAPER,
    "paired": True,
    "adversary": "patch",
    "adversary_chans": 12,
    "adversary_strength": 0.25,
    "adversary_lr": 2e-3,
    "adversary_betas": (0.5, 0.99),
    "adversary_ramp_steps": 60,
    "adversary_warmup_steps": 200,
    "adversary_replay": 48,
    "reg_param": 0.02,
    "penalty_every": 4,
}
# How long, and at which rates, stage 2 was published.
PUBLISHED: dict[str, Any] = {
    "epochs": 1000,
    "epoch_fraction": 0.2,
    "optimizer": "adam",
    "lr": 1e-4,
    "lr_drop_every": 40,
    "lr_min": 1e-6,
    "lr_decay": 0.0,
    "clip_grad_norm": None,
}
RECIPES = {"paper": PAPER, "ours": OURS, "adversary": ADVERSARY}


def with_recipe(
    defaults: Settings, words: list[str], schedules: Mapping[str, dict[str, Any]]
) -> tuple[Settings, list[str]]:
    """A script's settings with the recipe that its words name, and the other words.

    Args:
        defaults: the script's.
        words: of its command line.
        schedules: how long and at which rates, where the script says that for a recipe.

    Raises:
        ConfigError: no such recipe, two of them, or one for stage 1 or for a run that is resumed.
    """
    named = [word.removeprefix(WORD) for word in words if word.startswith(WORD)]
    others = [word for word in words if not word.startswith(WORD)]
    if not named:
        return defaults, others
    if len(named) > 1 or named[0] not in RECIPES:
        raise ConfigError(f"recipe={' and recipe='.join(named)}: name one of {', '.join(RECIPES)}")
    if defaults.adversary is None and defaults.streak_weight == 0:
        raise ConfigError("a recipe is for stage 2, the training against banding")
    if any(word.startswith("resume=") and word != "resume=null" for word in others):
        raise ConfigError("a run that is resumed keeps its recipe; begin a new one with restart=")
    return replace(defaults, **RECIPES[named[0]], **schedules.get(named[0], {})), others
