"""What benchmarks/efficacy.py trains: the sizes of the phantom, stage 1, and recipes of stage 2."""

from dataclasses import dataclass, replace
from typing import Any

from banding_removal.config.demo import PRETRAINING, STAGE_2
from banding_removal.config.recipes import ADVERSARY, DIRECT, PAPER
from banding_removal.config.settings import Settings
from banding_removal.data.filters import VolumeFilter
from banding_removal.data.phantom.spec import DEMO, MEDIUM, REAL_SIZE, PhantomSpec


@dataclass(frozen=True, kw_only=True)
class Size:
    """A phantom, and what of the demo's settings goes with its size."""

    phantom: PhantomSpec
    settings: dict[str, Any]
    train_volumes: int = 24
    brain: bool = False  # the anatomy of benchmarks/brain.py in place of the phantom's


SIZES = {
    "96": Size(phantom=DEMO, settings={}),
    "brain": Size(phantom=DEMO, settings={}, brain=True),
    "128": Size(phantom=MEDIUM, settings={"acs_lines": (12,)}),
    "192": Size(
        phantom=replace(DEMO, kspace_size=(192, 192), target_size=(192, 192), acquired=(5, 187)),
        settings={"acs_lines": (14,)},
    ),
    # As patient data are: oversampled along readout, and not square.
    "oblong": Size(phantom=replace(DEMO, kspace_size=(144, 108), acquired=(2, 106)), settings={}),
    # As large as patient data are, and as many coils: for a GPU.
    "real": Size(
        phantom=replace(REAL_SIZE, slices=12), settings={"acs_lines": (16,)}, train_volumes=12
    ),
    # The same with the published network. Stage 2 as published is the recipe `paper`.
    "paper": Size(
        phantom=replace(REAL_SIZE, slices=12),
        settings={
            **{"acs_lines": (16,), "cascades": 12, "chans": 18, "pools": 4, "sens_chans": 8},
            "checkpoint_every": 100,
        },
        train_volumes=12,
    ),
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
_ADAM: dict[str, Any] = {"optimizer": "adam", "lr": 3e-4}
STAGE_1 = replace(PRETRAINING, name="stage_1", epochs=12, **ONE_CORE)
_DIRECT = replace(STAGE_2, **DIRECT, **ONE_CORE, epochs=10, epoch_fraction=1.0)
_PAIRS: dict[str, Any] = {"epoch_fraction": 0.5}  # two orientations a step, half the steps
_PAPER = {**PAPER, "rollbacks": None}  # as published, to its end, even if images get worse
_VIEW = {"adversary_view": "low_signal", "adversary_strength": 0.03}
FROM_SCRATCH = ("bfloat16",)  # these are stage 1 once more, in another way
RECIPES = {
    "control": replace(_DIRECT, streak_weight=0.0),
    "direct": _DIRECT,
    "last": replace(_DIRECT, trained_cascades=1, epochs=20),  # of half the cost a step
    # The direct loss without one of its parts.
    "to_none": replace(_DIRECT, streak_below=0.0),
    "even": replace(_DIRECT, streak_background=0.5),
    "adam": replace(_DIRECT, optimizer="adam", lr=2e-3),
    "paper": replace(_DIRECT, **_PAPER, **_ADAM),
    "paper_8": replace(_DIRECT, **_PAPER, **_ADAM, accumulate=8),  # a step as on eight GPUs
    # The published recipe, with as little as possible changed.
    "paper_view": replace(_DIRECT, **_PAPER | _VIEW),
    "paper_view_pretrained": replace(_DIRECT, **_PAPER | _VIEW | {"adversary_pretrain_steps": 200}),
    "adversary": replace(_DIRECT, **ADVERSARY, **_PAIRS),
    # That without one of its parts.
    "adversary_alone": replace(_DIRECT, **ADVERSARY | {"streak_weight": 0.0}, **_PAIRS),
    "all_cells": replace(_DIRECT, **ADVERSARY | {"adversary_background": None}, **_PAIRS),
    "whole_image": replace(_DIRECT, **ADVERSARY | {"adversary_view": "image"}, **_PAIRS),
    "everything": replace(_DIRECT, **ADVERSARY | {"adversary_changes": "everything"}, **_PAIRS),
    "bfloat16": replace(STAGE_1, precision="bfloat16"),
}


def stage_1(size: str, seed: int) -> Settings:
    """The pretraining of a size and seed."""
    return replace(STAGE_1, seed=seed, **SIZES[size].settings)


def stage_2(recipe: str, size: str, seed: int) -> Settings:
    """The training that follows it."""
    return replace(RECIPES[recipe], seed=seed, **SIZES[size].settings)
