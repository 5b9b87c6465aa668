"""Detects a failing run and returns it to its last good state; lower learning rates follow.

Adversarial training fails in a few known ways, all of which show in the metrics long before anybody
looks at a picture: a NaN or exploding loss, streaks in the other direction (overshooting), texture
written over what was smooth, lost detail. An adversary that stays at chance is only logged: if it
adds texture, a validation shows that.
"""

import copy
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from banding_removal.training.players import Players
from banding_removal.training.progress import Progress

log = logging.getLogger(__name__)

EXPLODED = 2.0  # times the smoothed loss of the last good state
EARLY = 50  # steps that the smoothed loss needs to settle
# Compared with the predictor that stage 2 began with, in validation.
OVERSHOT = -1.0  # dB of banding: streaks across the phase-encode axis
TEXTURE = 1.0  # dB by which streaks across the banding have grown
# Of SSIM, at the end of a run; twice as much at the full learning rate, which keeps weights from
# settling: with Muon at 0.02, SSIM falls by 0.02 in the first epoch and recovers as the rate falls.
LESS_DETAIL = 0.015
AT_CHANCE = 0.55  # accuracy of the adversary in an epoch
STILL_BANDED = 0.5  # dB


class FailingRun(Exception):  # noqa: N818  # a finding about the run, raised in all processes alike
    """The run is failing.

    Args:
        why: what shows it.
        in_validation: whether a validation showed it; any step since the validation before may then
            be the cause.
    """

    def __init__(self, why: str, *, in_validation: bool = False) -> None:
        super().__init__(why)
        self.in_validation = in_validation


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A good state of this process, on the CPU."""

    players: dict[str, Any]  # Players.state_dict
    progress: dict[str, Any]
    loss: float | None  # smoothed training loss; None: not known


@dataclass(kw_only=True)
class Safeguard:
    """The last good states of a run, which consists of players and progress."""

    players: Players
    progress: Progress
    good: list[Snapshot] = field(default_factory=list)  # the newest two
    validated: Snapshot | None = None  # the newest one whose validation found nothing wrong
    used: bool = False  # the run went back to the newest, and has reached no good state since

    def keep(self, loss: float | None, *, validated: bool = False) -> None:
        """Remember the current state as a good one.

        Args:
            loss: smoothed training loss; None: not known.
            validated: its validation found nothing wrong, or it is the first state.
        """
        snapshot = Snapshot(
            players=_copy(self.players.state_dict()),
            progress=copy.deepcopy(vars(self.progress)),
            loss=loss,
        )
        self.good = [*self.good[-1:], snapshot]
        self.used = False
        if validated:
            self.validated = snapshot

    def check_loss(self, loss: float, steps: int) -> None:
        """Compare the training loss with that of the last good state.

        Args:
            loss: smoothed.
            steps: that went into it.

        Raises:
            FailingRun: it has exploded.
        """
        before = self.good[-1].loss
        if settled(steps) and before is not None and loss > EXPLODED * before:
            raise FailingRun(f"the loss explodes: from {before:.4f} to {loss:.4f}")

    def roll_back(self, *, to_validated: bool = False) -> None:
        """Restore the last good state.

        If the run fails again before it reaches another good state, it goes one state further back.

        Args:
            to_validated: restore the last validated state.
        """
        if to_validated and self.validated is not None:
            self.good = [self.validated]
        elif self.used and len(self.good) > 1:
            self.good.pop()
        self.used = True
        snapshot = self.good[-1]
        # A copy, since optimisers go on with the very tensors that they load.
        self.players.load_state_dict(_copy(snapshot.players), Path("the last good state"))
        vars(self.progress).update(copy.deepcopy(snapshot.progress))


def settled(steps: int) -> bool:
    """Whether enough steps went into the smoothed loss to rely on it."""
    return steps >= EARLY


def check_validation(start: Mapping[str, float], now: Mapping[str, float], *, rate: float) -> None:
    """Compare the metrics of a validation with those of the predictor that stage 2 began with.

    Args:
        start: metrics at the beginning of stage 2.
        now: metrics of this validation.
        rate: the learning rate, as a part of that at the beginning of the run.

    Raises:
        FailingRun: the predictor has done something else than remove banding.
    """
    problems = []
    if now["banding"] < OVERSHOT and now["banding"] < start["banding"]:
        problems.append(f"streaks run across the phase-encode axis (B {now['banding']:.2f} dB)")
    texture = now["banding_across"] - start["banding_across"]
    if texture > TEXTURE:
        problems.append(f"texture is added across the streaks (+{texture:.2f} dB)")
    lost = start["ssim"] - now["ssim"]
    if lost > LESS_DETAIL * (1 + rate):
        problems.append(f"SSIM has fallen from {start['ssim']:.4f} to {now['ssim']:.4f}")
    if problems:
        raise FailingRun("; ".join(problems), in_validation=True)


def warn_if_at_chance(row: Mapping[str, Any]) -> None:
    """Log a warning if the adversary has learnt nothing although there is banding.

    Args:
        row: of the history, with the metrics of an epoch.
    """
    banding = row.get("val_banding", math.nan)
    if row.get("accuracy", 1.0) < AT_CHANCE and banding > STILL_BANDED:
        log.warning(
            "the adversary is at chance (accuracy %.2f) although there is banding (%.2f dB): train "
            "it alone first (adversary_pretrain_steps), use pairs (paired, adversary_replay), or "
            "give it time",
            *(row["accuracy"], banding),
        )


def _copy(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict on the CPU that shares no tensor with the given one."""

    def copied(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().cpu().clone()
        if isinstance(value, Mapping):
            return {key: copied(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(copied(item) for item in value)
        return value

    return {key: copied(value) for key, value in state.items()}
