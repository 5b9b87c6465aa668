"""What changes from step to step: learning rates and the weights of the losses.

All of it is computed from the settings, the number of the step and that of rollbacks so far;
nothing is remembered from one step to the next.
"""

import math
from dataclasses import dataclass

from banding_removal.config.settings import Settings


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """Everything that one training step uses of the settings, with the values of that step."""

    num_groups: int  # batches (pairs) of each process whose gradients are averaged in the step
    lr: float
    clip_grad_norm: float | None
    l1_weight: float
    streak_weight: float
    streak_below: float
    streak_background: float
    uses_adversary: bool  # the predictor's loss has the orientation term
    orientation_weight: float
    trains_adversary: bool
    adversary_lr: float
    penalty_weight: float  # 0: no penalty in this step
    replay_batch: int  # earlier pairs that are added to each batch of the adversary


def settings_of_step(
    settings: Settings, *, epochs: float, step: int, backoff_factor: float = 1.0
) -> StepSettings:
    """The settings of one step.

    Args:
        settings: full learning rates and weights, and how they change during the run.
        epochs: completed before the step, with the completed part of the current one.
        step: its number in the run, counted from 1.
        backoff_factor: multiplies the learning rates and the weights against banding.
    """
    epoch = int(epochs) + 1
    lr, adversary_lr = (
        backoff_factor
        * learning_rate(
            epochs,
            base,
            drop_every=settings.lr_drop_every,
            drop_factor=settings.lr_drop_factor,
            minimum=settings.lr_min,
            decay=settings.lr_decay,
            total=settings.epochs,
        )
        for base in (settings.lr, settings.adversary_lr)
    )
    strength = adversary_strength(
        step, settings.adversary_strength, ramp_steps=settings.adversary_ramp_steps
    )
    has_adversary = settings.adversary is not None
    return StepSettings(
        num_groups=settings.accumulate,
        lr=lr,
        clip_grad_norm=settings.clip_grad_norm,
        l1_weight=settings.l1_weight,
        streak_weight=backoff_factor * settings.streak_weight,
        streak_below=settings.streak_below,
        streak_background=settings.streak_background,
        uses_adversary=has_adversary and epoch >= settings.adversary_term_from_epoch,
        orientation_weight=backoff_factor * strength,
        trains_adversary=has_adversary and epoch >= settings.adversary_from_epoch,
        adversary_lr=adversary_lr,
        penalty_weight=penalty_weight(step, settings.reg_param, every=settings.penalty_every),
        replay_batch=settings.adversary_replay_batch,
    )


def learning_rate(
    epochs: float,
    base: float,
    *,
    drop_every: int | None = None,
    drop_factor: float = 0.1,
    minimum: float = 0.0,
    decay: float = 0.0,
    total: float = math.inf,
) -> float:
    """Base learning rate, times `drop_factor` after every `drop_every` epochs, at least `minimum`.

    Over the last part of the run, `decay` of its `total` epochs, it also falls linearly to zero,
    step by step. The minimum keeps 1000 epochs with a tenth every 40 from ending at 1e-28.

    Args:
        epochs: completed so far, with the completed part of the current one.
        base: rate at the start.
        drop_every: epochs between drops; None: none.
        drop_factor: of each drop.
        minimum: drops and decay end there, or at `base` if that is less.
        decay: part of the run in which the rate falls to zero; 0: none.
        total: epochs of the run.
    """
    drops = 0 if drop_every is None else int(epochs) // drop_every
    rate = base * drop_factor**drops
    left = 1 - epochs / total
    if 0 < decay > left:
        rate *= max(left, 0.0) / decay
    return max(rate, min(base, minimum))


def adversary_strength(step: int, full: float, *, ramp_steps: int) -> float:
    """Weight of the orientation term in a step of the run, counted from 1; a linear ramp first."""
    return full * (min(1.0, step / ramp_steps) if ramp_steps else 1.0)


def penalty_weight(step: int, weight: float, *, every: int) -> float:
    """Weight of the gradient penalty in a step, counted from 1: its mean over steps is `weight`.

    The penalty's second derivatives take longer than everything else that the adversary does, so it
    may be left out of most steps (Karras et al., 2020, "lazy regularization").
    """
    return weight * every if (step - 1) % every == 0 else 0.0
