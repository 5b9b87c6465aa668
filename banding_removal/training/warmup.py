"""Training of the adversary alone, before the predictor is trained against it.

An adversary that starts from random weights, on reconstructions that keep changing, can stay at
chance. With a fixed predictor, on slices that are reconstructed once, it learns to see banding
within a few hundred cheap steps.
"""

import logging
import math
import time
from collections import deque

import torch

from banding_removal.data.dataset import SliceDataset
from banding_removal.errors import ConfigError
from banding_removal.processes.team import Team
from banding_removal.reconstruction.pairs import reconstruct_pairs
from banding_removal.training.compute import fetch
from banding_removal.training.players import Players
from banding_removal.training.replay import PairStore
from banding_removal.training.schedule import penalty_weight
from banding_removal.training.step import clip_gradients

log = logging.getLogger(__name__)

PAIRS = 4  # in a batch of each process
LOG_EVERY = 50


def warm_up(
    players: Players,
    dataset: SliceDataset,
    device: torch.device,
    team: Team,
    *,
    steps: int,
    slices: int,
    reg_param: float,
    penalty_every: int = 1,
    clip_grad_norm: float | None = None,
) -> bool:
    """Train the adversary alone, on slices that the predictor reconstructs in both orientations.

    Every process has slices of its own; gradients are averaged. The store of earlier
    reconstructions, if there is one, begins with these.

    Args:
        players: with an adversary.
        dataset: the training slices.
        device: of the players.
        team: the processes.
        steps: of the adversary.
        slices: of all processes, spread over the data set.
        reg_param: weight of the gradient penalty.
        penalty_every: steps from one penalty to the next.
        clip_grad_norm: largest norm of the gradient; None: unlimited.

    Returns:
        False if any process was asked to stop.

    Raises:
        ConfigError: no slice can be transposed.
        FloatingPointError: the adversary's loss is NaN or infinite.
    """
    begun = time.perf_counter()
    store = _reconstructions(players, dataset, slices, device, team)
    if _asked_to_stop(team):
        return False
    seconds = time.perf_counter() - begun
    log.info("adversary alone: %d slices, reconstructed in %.0f s", len(store.pairs), seconds)
    recent: deque[dict[str, float]] = deque(maxlen=LOG_EVERY)
    for step in range(1, steps + 1):
        weight = penalty_weight(step, reg_param, every=penalty_every)
        recent.append(_train_adversary(players, store, weight, clip_grad_norm))
        if _asked_to_stop(team):
            return False
        if step % LOG_EVERY == 0 or step == steps:
            mean = {key: sum(row[key] for row in recent) / len(recent) for key in recent[0]}
            mean = team.mean(mean)
            log.info(
                "adversary alone, step %d/%d: loss %.4f, penalty %.4f, accuracy %.2f",
                *(step, steps),
                *(mean["adversary_orientation"], mean["penalty"], mean["accuracy"]),
            )
    if players.replay is not None:
        players.replay.add(store.pairs)
    log.info("adversary alone: took %.0f s", time.perf_counter() - begun)
    return True


def _train_adversary(
    players: Players,
    store: PairStore,
    penalty_weight: float,
    clip_grad_norm: float | None,
) -> dict[str, float]:
    """One step of the adversary on pairs from the store; returns the metrics."""
    assert players.objective is not None and players.adversary is not None
    assert players.adversary_optimizer is not None
    example = store.pairs[int(torch.randint(len(store.pairs), ()))]
    images, rotated = store.draw(PAIRS, like=example)
    losses = players.objective.adversary_loss_upright(images, rotated, penalty_weight)
    losses.loss.backward()
    norm = clip_gradients(players.adversary, clip_grad_norm)
    checked, metrics = fetch([{"loss": losses.loss.detach(), "grad_norm": norm}, losses.metrics()])
    for name, value in checked.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"the adversary's {name} is {value} while it trains alone")
    players.adversary_optimizer.step()
    players.adversary_optimizer.zero_grad(set_to_none=True)
    return metrics


def _asked_to_stop(team: Team) -> bool:
    """Whether any process was; the same answer in all of them."""
    return team.mean({"stop": float(team.stop.signal_name is not None)})["stop"] > 0


def _reconstructions(
    players: Players, dataset: SliceDataset, slices: int, device: torch.device, team: Team
) -> PairStore:
    """This process's share of slices, spread over the data set, until it is asked to stop."""
    usable = [
        index
        for index, (volume, _) in enumerate(dataset.places)
        if dataset.volumes[volume].measured is None
    ]
    if not usable:
        raise ConfigError("adversary_pretrain_steps needs volumes that were fully sampled")
    count = min(len(usable), max(slices, team.size))
    chosen = [usable[i * len(usable) // count] for i in range(count)]
    share = chosen[team.rank % count :: team.size]
    store = PairStore(count)
    for pair in reconstruct_pairs(players.predictor, dataset, share, device):
        if team.stop.signal_name is not None:
            break
        assert pair.along_y is not None, "the volumes were fully sampled"
        store.add([torch.stack([pair.along_x, pair.along_y])[:, None]])
    return store
