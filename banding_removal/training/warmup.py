"""A start for the adversary: it learns to see the predictor's banding before it is heard.

An adversary that begins from nothing, on reconstructions that move away under it, can stay at
chance; against a predictor that stands still, on slices that are reconstructed once, it learns
within a few hundred cheap steps.
"""

import logging
import time
from collections import deque

import torch

from banding_removal.config.settings import Settings
from banding_removal.data.dataset import SliceDataset
from banding_removal.errors import ConfigError
from banding_removal.losses.reconstruction import finite
from banding_removal.processes.team import Team
from banding_removal.reconstruction.pairs import reconstruct_pairs
from banding_removal.training.replay import PairStore
from banding_removal.training.step import Players, clip_gradients, set_weights

log = logging.getLogger(__name__)

PAIRS = 4  # in a batch of each process
LOG_EVERY = 50


def warm_up(
    settings: Settings, players: Players, dataset: SliceDataset, device: torch.device, team: Team
) -> bool:
    """Train the adversary alone on slices that the predictor reconstructs in both orientations.

    Each process has slices of its own, and gradients are averaged. The store of earlier
    reconstructions, if there is one, begins with these.

    Returns:
        False if any process was asked to stop.

    Raises:
        ConfigError: no slice can be transposed.
        FloatingPointError: the adversary's loss is not finite.
    """
    assert players.objective is not None and players.adversary is not None
    assert players.adversary_optimizer is not None
    begun = time.perf_counter()
    cache = _reconstructions(settings, players, dataset, device, team)
    if team.mean({"stop": float(team.stop.signal_name is not None)})["stop"] > 0:
        return False
    seconds = time.perf_counter() - begun
    log.info("warm-up of the adversary on %d slices, ready in %.0f s", len(cache.pairs), seconds)
    recent: deque[dict[str, float]] = deque(maxlen=LOG_EVERY)
    for step in range(1, settings.adversary_pretrain_steps + 1):
        size = cache.pairs[int(torch.randint(len(cache.pairs), ()))]
        images, rotated = cache.draw(PAIRS, like=size.to(device))
        set_weights(settings, players, step)
        verdict = players.objective.judge(images, rotated)
        if not finite(verdict.loss):
            raise FloatingPointError(f"adversary's loss is {verdict.loss.item()} in its warm-up")
        verdict.loss.backward()
        clip_gradients(players.adversary, settings.clip_grad_norm)
        players.adversary_optimizer.step()
        players.adversary_optimizer.zero_grad(set_to_none=True)
        stop = float(team.stop.signal_name is not None)
        values = team.mean({**verdict.figures(), "stop": stop})
        if values["stop"] > 0:
            return False
        recent.append(values)
        if step % LOG_EVERY == 0 or step == settings.adversary_pretrain_steps:
            mean = {key: sum(row[key] for row in recent) / len(recent) for key in values}
            log.info(
                "warm-up step %d/%d: adversary's loss %.4f, penalty %.4f, accuracy %.2f",
                *(step, settings.adversary_pretrain_steps),
                *(mean["adversary_orientation"], mean["penalty"], mean["accuracy"]),
            )
    if players.replay is not None:
        players.replay.add(cache.pairs)
    log.info("warm-up took %.0f s", time.perf_counter() - begun)
    return True


def _reconstructions(
    settings: Settings, players: Players, dataset: SliceDataset, device: torch.device, team: Team
) -> PairStore:
    """This process's share of slices, spread over the data set, until it is asked to stop."""
    usable = [
        index
        for index, (volume, _) in enumerate(dataset.places)
        if dataset.volumes[volume].measured is None
    ]
    if not usable:
        raise ConfigError("adversary_pretrain_steps needs volumes that were fully sampled")
    count = min(len(usable), max(settings.adversary_pretrain_slices, team.size))
    chosen = [usable[i * len(usable) // count] for i in range(count)]
    share = chosen[team.rank % count :: team.size]
    store = PairStore(count)
    for pair in reconstruct_pairs(players.predictor, dataset, share, device):
        if team.stop.signal_name is not None:
            break
        assert pair.along_y is not None, "the volumes were fully sampled"
        store.add([torch.stack([pair.along_x, pair.along_y])[:, None]])
    return store
