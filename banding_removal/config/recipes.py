"""Ways to train against banding, as settings: `recipe=direct`, `=adversary`, `=paper`.

A recipe sets what acts against banding and with which weight, but not the predictor or the length
of a run. `docs/results.md` compares the recipes.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from banding_removal.config.settings import Recipe, Settings

# As published: one slice per step in one of the two orientations, one logit per slice.
PAPER: dict[str, Any] = {
    "recipe": "paper",
    "paired": False,
    "adversary": "shallow",
    "adversary_members": 1,
    "adversary_chans": None,
    "adversary_strength": 1.0,
    "adversary_target": "uncertain",
    "adversary_changes": "everything",
    "adversary_view": "image",
    "adversary_background": None,
    "adversary_lr": 1e-4,
    "adversary_betas": (0.9, 0.999),
    "adversary_from_epoch": 1,
    "adversary_term_from_epoch": 1,
    "adversary_ramp_steps": 0,
    "adversary_pretrain_steps": 0,
    "adversary_replay": 0,
    "reg_param": 0.1,
    "penalty_every": 1,
    "streak_weight": 0.0,
    "trained_cascades": None,
}

# Nothing against banding: the control experiment.
NONE: dict[str, Any] = {**PAPER, "recipe": "none", "adversary": None}
# A direct loss against streaks in place of an adversary.
DIRECT: dict[str, Any] = {**NONE, "recipe": "direct", "streak_weight": 0.0175}
# An adversary that works within minutes. It sees dark texture at equal contrast, its gradient can
# only change streaks, and it is trained alone first. Both orientations in every step, earlier
# reconstructions and a grid of logits make it learn faster. The direct loss, nearly as strong as in
# DIRECT, acts where the adversary is slowest, in anatomy.
ADVERSARY: dict[str, Any] = {
    **PAPER,
    "recipe": "adversary",
    "paired": True,
    "adversary": "patch",
    "adversary_chans": 12,
    "adversary_strength": 0.03,
    "adversary_changes": "streaks",
    "adversary_view": "low_signal",
    "adversary_background": 0.1,
    "adversary_lr": 2e-3,
    "adversary_betas": (0.5, 0.99),
    "adversary_ramp_steps": 60,
    "adversary_pretrain_steps": 200,
    "adversary_replay": 48,
    "reg_param": 0.02,
    "penalty_every": 4,
    "streak_weight": 0.016,
}
RECIPES: dict[Recipe, dict[str, Any]] = {
    "none": NONE,
    "direct": DIRECT,
    "adversary": ADVERSARY,
    "paper": PAPER,
}

# The length and the learning rates of stage 2 as published, but never below `lr_min`.
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


def with_recipe(settings: Settings, schedules: Mapping[str, dict[str, Any]]) -> Settings:
    """The settings, with the values that their recipe sets in place of those they had.

    Args:
        settings: their `recipe` says which.
        schedules: by recipe, a length and learning rates that take the place of theirs as well.
    """
    return replace(settings, **RECIPES[settings.recipe], **schedules.get(settings.recipe, {}))
