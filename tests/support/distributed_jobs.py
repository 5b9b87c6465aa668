"""What test processes run: looked up by name in processes that are started."""

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from banding_removal.config.settings import Settings
from banding_removal.data.batch import collate
from banding_removal.data.dataset import Draw, SliceDataset
from banding_removal.data.volume import VolumeError
from banding_removal.processes.team import Team
from banding_removal.runs.datasets import make_datasets
from banding_removal.training.players import Players, make_players
from banding_removal.training.schedule import settings_of_step
from banding_removal.training.step import train_step
from banding_removal.training.validation import ValidationResult, Validator

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Plain:
    """Settings of a job that needs none but these."""

    nproc: int | None = 2
    device: str = "cpu"
    timeout_minutes: float = 5.0


def gradients(settings: Settings, team: Team, indices: list[int]) -> list[Tensor]:
    """Gradients of both networks after one step's batches, before the optimisers' step."""
    train_set, _ = make_datasets(settings)
    torch.manual_seed(0)
    players = make_players(settings, CPU, team=team)
    kept: list[Tensor] = []

    def keep(*_: Any) -> None:
        networks = [n for n in (players.predictor, players.adversary) if n is not None]
        kept.extend(w.grad.clone() for n in networks for w in n.parameters() if w.grad is not None)

    players.optimizer.register_step_pre_hook(keep)
    turns = (False, True) if settings.paired else (None,)
    draws = [[Draw(epoch=0, index=i, rotated=turn) for turn in turns] for i in indices]
    groups = [[collate([train_set[draw]]) for draw in group] for group in draws]
    train_step(players, groups, settings_of_step(settings, epochs=0, step=1))
    return kept


def everything(settings: Settings, team: Team) -> dict[str, Any]:
    """What several processes compute together, for the comparison with one."""
    # Names of the team's members, and the first one's view of everything.
    shared = team.from_first(lambda: f"made by {team.rank}")
    mean = team.mean({"b": float(team.rank), "a": 10.0 * team.rank})
    stage_2 = replace(settings, stage="train", adversary="simple", adversary_chans=8, reg_param=5.0)
    paired = replace(stage_2, accumulate=2, paired=True)
    return {
        "shared": team.gather(shared),
        "mean": mean,
        "ranks": team.gather(team.rank),
        "random": team.gather(_random_after_seeding(team)),
        "stage 1": gradients(settings, team, [team.rank]),
        "stage 2": gradients(stage_2, team, [team.rank]),
        "accumulated": gradients(replace(stage_2, accumulate=2), team, [team.rank, team.rank + 2]),
        "paired": gradients(paired, team, [team.rank, team.rank + 2]),
        "last cascade": gradients(
            replace(settings, cascades=2, trained_cascades=1), team, [team.rank]
        ),
        "validation": validation(settings, team),
    }


def _random_after_seeding(team: Team) -> float:
    torch.manual_seed(3)
    team.seed_per_rank(3)
    return float(torch.rand(()))


def validation(settings: Settings, team: Team) -> ValidationResult | None:
    """The validation of an untrained predictor."""
    _, val_set = make_datasets(settings)
    torch.manual_seed(0)
    players: Players = make_players(settings, CPU)
    return validate_with(players, val_set, team)


def validate_with(players: Players, val_set: SliceDataset, team: Team) -> ValidationResult | None:
    validator = Validator(
        val_set, display=[0, 7, 4], device=CPU, workers=0, l1_weight=0.01, team=team
    )
    return validator.run(players.predictor)


def fail_in_rank_1(settings: Plain, team: Team) -> None:
    """One process fails while the other waits for it."""
    with team.naming_causes():
        if team.rank == 1:
            raise VolumeError("/data/broken.h5: cannot be read")
        team.wait()


def fail_while_the_other_computes(settings: Plain, team: Team) -> None:
    """The other process is not in a collective, and would not notice for a long time."""
    if team.rank == 0:
        raise RuntimeError("a bug")
    time.sleep(600)
