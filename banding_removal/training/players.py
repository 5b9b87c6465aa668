"""The two players: the predictor, the adversary of stage 2, and their optimisers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from banding_removal.config.settings import Settings
from banding_removal.errors import CheckpointError
from banding_removal.losses.orientation import OrientationObjective
from banding_removal.model.predictor import UnrolledNetwork
from banding_removal.model.predictors import with_recomputation
from banding_removal.processes.team import Team
from banding_removal.runs.build import build_adversary_of, build_predictor
from banding_removal.runs.checkpoint import Checkpoint
from banding_removal.runs.weights import load_optimizer, load_weights
from banding_removal.training.compute import uses_bfloat16
from banding_removal.training.muon import Muon
from banding_removal.training.replay import PairStore


@dataclass(kw_only=True)
class Players:
    """Networks and optimisers. Stage 1 has no adversary."""

    predictor: nn.Module
    # The same in DistributedDataParallel, if there are several processes.
    parallel_predictor: nn.Module
    optimizer: torch.optim.Optimizer
    bfloat16: bool = False  # the networks run under bfloat16 autocast in training steps
    adversary: nn.Module | None = None
    objective: OrientationObjective | None = None  # around the adversary, in parallel, too
    adversary_optimizer: torch.optim.Adam | None = None
    replay: PairStore | None = None

    def autocast(self) -> torch.autocast:
        """The context in which the networks run in a training step."""
        device = next(self.predictor.parameters()).device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.bfloat16)

    def set_learning_rates(self, lr: float, adversary_lr: float) -> None:
        """The learning rate of either optimiser from now on."""
        for optimizer, rate in ((self.optimizer, lr), (self.adversary_optimizer, adversary_lr)):
            for group in [] if optimizer is None else optimizer.param_groups:
                group["lr"] = rate

    def learning_rates(self) -> dict[str, float]:
        """The present rates, by the names of a row of the history."""
        optimizers = {"lr": self.optimizer, "adversary_lr": self.adversary_optimizer}
        return {
            name: optimizer.param_groups[0]["lr"]
            for name, optimizer in optimizers.items()
            if optimizer is not None
        }

    def state_dict(self) -> dict[str, Any]:
        """The state of this process, under the names of `Checkpoint`; weights are not copied."""
        parts: dict[str, nn.Module | torch.optim.Optimizer | None] = {
            "predictor": self.predictor,
            "optimizer": self.optimizer,
            "adversary": self.adversary,
            "adversary_optimizer": self.adversary_optimizer,
        }
        states = {key: None if part is None else part.state_dict() for key, part in parts.items()}
        pairs = [] if self.replay is None else [pair.cpu() for pair in self.replay.pairs]
        return {**states, "replay": pairs}

    def load_state_dict(self, state: Mapping[str, Any], origin: Path) -> None:
        """Take over what `state_dict` returned; gradients are dropped.

        Args:
            state: other keys are ignored.
            origin: where it comes from, for messages.

        Raises:
            CheckpointError: it is of the other stage, or does not fit these networks.
        """
        if (state["adversary"] is None) != (self.adversary is None):
            raise CheckpointError(
                f"cannot resume from {origin}: it was saved {_with(state['adversary'])} an "
                f"adversary and this run is {_with(self.adversary)}; its weights can be used "
                f"with init_from={origin}"
            )
        load_weights(self.predictor, state["predictor"], origin)
        load_optimizer(self.optimizer, state["optimizer"], origin)
        self.optimizer.zero_grad(set_to_none=True)
        if self.adversary is not None and self.adversary_optimizer is not None:
            load_weights(self.adversary, state["adversary"], origin)
            load_optimizer(self.adversary_optimizer, state["adversary_optimizer"] or {}, origin)
            self.adversary_optimizer.zero_grad(set_to_none=True)
        if self.replay is not None:
            self.replay.pairs.clear()
            device = next(self.predictor.parameters()).device
            self.replay.add(
                pair.to(device)
                for pair in state["replay"]
                if len(pair) >= len(self.replay.orientations)
            )


def make_players(
    settings: Settings,
    device: torch.device,
    start: Checkpoint | None = None,
    start_path: Path | None = None,
    team: Team | None = None,
) -> Players:
    """The players of a run with fresh optimisers; the predictor has the weights of `start`."""
    team = team or Team()
    predictor = build_predictor(settings, device, start, start_path)
    if settings.trained_cascades is not None and isinstance(predictor, UnrolledNetwork):
        predictor.train_only(settings.trained_cascades)
    trained = [weight for weight in predictor.parameters() if weight.requires_grad]
    players = Players(
        predictor=predictor,
        parallel_predictor=team.data_parallel(with_recomputation(predictor, settings.recompute)),
        optimizer=_optimizer(settings, trained),
        bfloat16=uses_bfloat16(settings.precision, device),
    )
    adversary = build_adversary_of(settings, device)
    if adversary is not None:
        players.adversary = adversary
        players.objective = OrientationObjective(
            team.data_parallel(adversary),
            target=settings.adversary_target,
            reg_param=settings.reg_param,
            changes=settings.adversary_changes,
            view=settings.adversary_view,
            background=settings.adversary_background,
        )
        players.adversary_optimizer = torch.optim.Adam(
            adversary.parameters(),
            lr=settings.adversary_lr,
            betas=settings.adversary_betas,
            fused=True,
        )
        if settings.adversary_replay > 0:
            orientations = (team.rank % 2,) if settings.splits_pairs(team.size) else (0, 1)
            players.replay = PairStore(settings.adversary_replay, orientations)
    return players


def _optimizer(settings: Settings, weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    if settings.optimizer == "muon":
        return Muon(weights, settings.lr)
    return torch.optim.Adam(weights, lr=settings.lr, fused=True)


def _with(adversary: object | None) -> str:
    return "without" if adversary is None else "with"
