"""Runs that fail are noticed, taken back to their last good state, and go on more gently.

Adversarial training fails in a few known ways, and each shows in the figures long before anybody
looks at pictures: a loss that is no number, or explodes; streaks written in the other direction
(overshooting); texture written over what was smooth; detail lost. An adversary that stays at chance
is none of these: nothing gets worse, but nothing gets better, so it is only told.
"""

import copy
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from banding_removal.training.step import Players

log = logging.getLogger(__name__)

EXPLODED = 2.0  # times the running loss of the last good state
EARLY = 50  # steps in which the running loss is not yet one
# Against the predictor that stage 2 began with, in validation.
OVERSHOT = -1.0  # dB of banding: streaks across the phase encode axis
TEXTURE = 1.0  # dB that streaks across the banding have grown by
LESS_DETAIL = 0.015  # of SSIM
AT_CHANCE = 0.55  # accuracy of the adversary in an epoch
STILL_BANDED = 0.5  # dB


class FailingError(Exception):
    """The run is failing; raised in all processes alike."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A good state of this process, on the CPU."""

    predictor: dict[str, Any]
    optimizer: dict[str, Any]
    adversary: dict[str, Any] | None
    adversary_optimizer: dict[str, Any] | None
    replay: list[Tensor]
    progress: dict[str, Any]
    loss: float | None  # running mean of the training loss


@dataclass(kw_only=True)
class Safeguard:
    """The last good states of a run."""

    players: Players
    good: list[Snapshot] = field(default_factory=list)  # the newest two
    validated: Snapshot | None = None  # the newest that a validation found nothing wrong with
    used: bool = False  # the newest was gone back to, and nothing good came after it

    def keep(
        self, progress: Mapping[str, Any], loss: float | None, *, validated: bool = False
    ) -> None:
        """Remember the state as it is.

        Args:
            progress: where the run is.
            loss: running mean of the training loss; None: not known.
            validated: a validation found nothing wrong with it, or it is the first.
        """
        players = self.players
        optimizer, adversary = players.adversary_optimizer, players.adversary
        snapshot = Snapshot(
            predictor=_copy(players.predictor.state_dict()),
            optimizer=_copy(players.optimizer.state_dict()),
            adversary=None if adversary is None else _copy(adversary.state_dict()),
            adversary_optimizer=None if optimizer is None else _copy(optimizer.state_dict()),
            replay=[] if players.replay is None else [*players.replay.pairs],
            progress=copy.deepcopy(dict(progress)),
            loss=loss,
        )
        self.good = [*self.good[-1:], snapshot]
        self.used = False
        if validated:
            self.validated = snapshot

    def check_loss(self, loss: float, steps: int) -> None:
        """See whether the training loss explodes.

        Args:
            loss: its running mean.
            steps: that this is the mean of.

        Raises:
            FailingError: it does.
        """
        before = self.good[-1].loss
        if steps >= EARLY and before is not None and loss > EXPLODED * before:
            raise FailingError(f"the loss explodes: from {before:.4f} to {loss:.4f}")

    def roll_back(self, *, to_validated: bool = False) -> dict[str, Any]:
        """Bring back networks, optimisers and earlier reconstructions of the last good state.

        A failure that comes again before anything good came is taken one state further back.

        Args:
            to_validated: a validation found the failure, which may be as old as the one before.

        Returns:
            The progress of that state.
        """
        if to_validated and self.validated is not None:
            self.good = [self.validated]
        elif self.used and len(self.good) > 1:
            self.good.pop()
        self.used = True
        snapshot, players = self.good[-1], self.players
        players.predictor.load_state_dict(snapshot.predictor)
        players.optimizer.load_state_dict(_copy(snapshot.optimizer))
        players.optimizer.zero_grad(set_to_none=True)
        if players.adversary is not None and players.adversary_optimizer is not None:
            players.adversary.load_state_dict(snapshot.adversary or {})
            players.adversary_optimizer.load_state_dict(_copy(snapshot.adversary_optimizer or {}))
            players.adversary_optimizer.zero_grad(set_to_none=True)
        if players.replay is not None:
            players.replay.pairs.clear()
            players.replay.add(snapshot.replay)
        players.doubts.clear()
        return copy.deepcopy(snapshot.progress)


def check_validation(start: Mapping[str, float], now: Mapping[str, float]) -> None:
    """Compare a validation with that of the predictor that stage 2 began with.

    Raises:
        FailingError: banding was not removed, but something else was done.
    """
    problems = []
    if now["banding"] < OVERSHOT and now["banding"] < start["banding"]:
        problems.append(f"streaks lie across the phase encode axis ({now['banding']:.2f} dB)")
    texture = now["banding_across"] - start["banding_across"]
    if texture > TEXTURE:
        problems.append(f"texture is written across the streaks (+{texture:.2f} dB)")
    lost = start["ssim"] - now["ssim"]
    if lost > LESS_DETAIL:
        problems.append(f"SSIM has fallen from {start['ssim']:.4f} to {now['ssim']:.4f}")
    if problems:
        raise FailingError("; ".join(problems))


def warn_of_chance(row: Mapping[str, Any]) -> None:
    """Tell of an adversary that has learnt nothing although there is banding.

    Args:
        row: of the history.
    """
    banding = row.get("val_banding", math.nan)
    if row.get("accuracy", 1.0) < AT_CHANCE and banding > STILL_BANDED:
        log.warning(
            "the adversary is at chance (accuracy %.2f) although there is banding (%.2f dB): it "
            "needs a warm-up (adversary_pretrain_steps), pairs (paired, adversary_replay), or time",
            *(row["accuracy"], banding),
        )


def _copy(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict that nothing else changes, on the CPU."""

    def copied(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().cpu().clone()
        if isinstance(value, Mapping):
            return {key: copied(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(copied(item) for item in value)
        return value

    return {key: copied(value) for key, value in state.items()}
