"""What benchmarks/efficacy.py trains: the sizes of the phantom, stage 1, and recipes of stage 2."""

from dataclasses import dataclass, replace
from typing import Any

from banding_removal.config import Settings
from data.filters import VolumeFilter
from data.phantom import DEMO, PhantomSpec
from scripts.demo import ADVERSARIAL, PRETRAINING


@dataclass(frozen=True, kw_only=True)
class Size:
    """A phantom, and what of the demo's settings goes with its size."""

    phantom: PhantomSpec
    settings: dict[str, Any]
    train_volumes: int = 24
    brain: bool = False  # the anatomy of benchmarks/brain.py in place of the phantom's


_96 = replace(DEMO, kspace_size=(96, 96), target_size=(96, 96), acquired=(2, 94))
SIZES = {
    "96": Size(phantom=_96, settings={"acs_lines": (10,)}),
    "brain": Size(phantom=_96, settings={"acs_lines": (10,)}, brain=True),
    "128": Size(phantom=DEMO, settings={"acs_lines": (12,)}),
    "tiny": Size(
        phantom=replace(
            DEMO, kspace_size=(48, 48), target_size=(48, 48), acquired=(0, 48), coils=2, slices=4
        ),
        settings={
            "acs_lines": (6,),
            "cascades": 1,
            "chans": 2,
            "sens_chans": 2,
            "epochs": 1,
            "log_every": 1,
        },
        train_volumes=2,
    ),
}

ONE_CORE: dict[str, Any] = {
    "nproc": 1,
    "device": "cpu",
    "workers": 0,
    "train_filter": VolumeFilter(),
    "val_filter": VolumeFilter(),
    "checkpoint_every": None,
    "keep_checkpoints": 1,
    "validate_every": 1000,
    "grid_every": 1000,
    "log_every": 10,
}
STAGE_1 = replace(PRETRAINING, name="stage_1", **ONE_CORE)

# The same further steps for all: two epochs of half the slices, every slice in both orientations.
_DEMO = replace(ADVERSARIAL, **ONE_CORE)
_CONTROL: dict[str, Any] = {
    "adversary": None,
    "adversary_replay": 0,
    "adversary_warmup_steps": 0,
    "adversary_ramp_steps": 0,
}
_ANNEALED: dict[str, Any] = {"epochs": 4, "epoch_fraction": 0.25, "lr_drop_every": 3}
_STREAKS: dict[str, Any] = {"streak_weight": 0.1}
FROM_SCRATCH = ("bfloat16",)  # these are stage 1 once more, in another way
# Names end in -3 with a learning rate of 1e-3, in -4 with 2e-3 for one half and 2e-4 for the other.
_HALVES: dict[str, Any] = {"epochs": 4, "epoch_fraction": 0.25, "lr_drop_every": 2, "lr": 2e-3}
RECIPES = {
    "control": replace(_DEMO, **_CONTROL, **_ANNEALED),
    "paper": replace(
        _DEMO,
        epochs=2,
        epoch_fraction=1.0,
        paired=False,
        adversary="shallow",
        adversary_lr=1e-4,
        adversary_betas=(0.9, 0.999),
        adversary_strength=1.0,
        reg_param=0.1,
        penalty_every=1,
        **{k: v for k, v in _CONTROL.items() if k != "adversary"},
    ),
    "demo": _DEMO,
    "annealed": replace(_DEMO, **_ANNEALED),
    "cone": replace(_DEMO, **_ANNEALED, adversary_changes="streaks"),
    "streaks": replace(_DEMO, **_CONTROL, **_ANNEALED, **_STREAKS),
    "bfloat16": replace(STAGE_1, precision="bfloat16"),
    "control-3": replace(_DEMO, **_CONTROL, **_ANNEALED, lr=1e-3),
    "streaks-3": replace(_DEMO, **_CONTROL, **_ANNEALED, **_STREAKS, lr=1e-3),
    "both-3": replace(_DEMO, **_ANNEALED, streak_weight=0.03, adversary_changes="streaks", lr=1e-3),
    "control-4": replace(_DEMO, **_CONTROL, **_HALVES),
    "streaks-4": replace(_DEMO, **_CONTROL, **_HALVES, streak_weight=0.05),
    "both-4": replace(_DEMO, **_HALVES, streak_weight=0.03, adversary_changes="streaks"),
    "target-3": replace(_DEMO, **_CONTROL, **_ANNEALED, lr=1e-3, target_blur=0.5),
    "targetadv-3": replace(
        _DEMO, **_ANNEALED, lr=1e-3, target_blur=0.5, adversary_changes="streaks"
    ),
    "cone-3": replace(_DEMO, **_ANNEALED, adversary_changes="streaks", lr=1e-3),
    "annealed-3": replace(_DEMO, **_ANNEALED, lr=1e-3),
    "both": replace(_DEMO, **_ANNEALED, **_STREAKS, adversary_changes="streaks"),
}


def stage_1(size: str, seed: int) -> Settings:
    """The pretraining of a size and seed."""
    return replace(STAGE_1, seed=seed, **SIZES[size].settings)


def stage_2(recipe: str, size: str, seed: int) -> Settings:
    """The training that follows it."""
    return replace(RECIPES[recipe], seed=seed, **SIZES[size].settings)
