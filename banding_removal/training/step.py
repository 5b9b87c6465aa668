"""One training step: the two players, their losses in two acts, their optimisers."""

import itertools
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from banding_removal.config.settings import Settings
from banding_removal.data.batch import Batch, joined
from banding_removal.data.operators import crop_to_smaller
from banding_removal.errors import CheckpointError
from banding_removal.losses.orientation import OrientationObjective, Verdict, upright
from banding_removal.losses.reconstruction import finite, reconstruction_loss
from banding_removal.losses.streaks import streak_term
from banding_removal.model.predictor import Predictor
from banding_removal.processes.team import Team
from banding_removal.runs.build import build_adversary_of, build_predictor
from banding_removal.runs.checkpoint import Checkpoint, load_optimizer, load_weights
from banding_removal.training.muon import Muon
from banding_removal.training.precision import uses_bfloat16
from banding_removal.training.replay import PairStore


@dataclass(kw_only=True)
class Players:
    """The networks and their optimisers; no adversary in stage 1."""

    predictor: Predictor
    shared_predictor: nn.Module  # the same, its gradients averaged over all processes
    optimizer: torch.optim.Optimizer
    bfloat16: bool = False  # in which the networks run
    adversary: nn.Module | None = None
    objective: OrientationObjective | None = None  # around the shared adversary
    adversary_optimizer: torch.optim.Adam | None = None
    strength: float = 0.0  # weight of the orientation term in the predictor's loss
    replay: PairStore | None = None
    softened: float = 1.0  # factor of all weights against banding and of the learning rates
    doubts: list[str] = field(default_factory=list)  # losses of the step that are not finite

    def autocast(self, batch: Batch) -> torch.autocast:
        """The context in which networks see a batch."""
        device = batch.masked_kspace.device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.bfloat16)

    def restore(self, checkpoint: Checkpoint, path: Path) -> None:
        """Take everything from a checkpoint of the same stage.

        Raises:
            CheckpointError: it is of the other stage, or its adversary does not fit.
        """
        load_optimizer(self.optimizer, checkpoint.optimizer, path)
        if (checkpoint.adversary is None) != (self.adversary is None):
            raise CheckpointError(
                f"cannot resume from {path}: it was saved {_with(checkpoint.adversary)} an "
                f"adversary and this run is {_with(self.adversary)}; its weights can be used "
                f"with init_from={path}"
            )
        if self.adversary is not None and self.adversary_optimizer is not None:
            load_weights(self.adversary, checkpoint.adversary or {}, path)
            load_optimizer(self.adversary_optimizer, checkpoint.adversary_optimizer or {}, path)


def make_players(
    settings: Settings,
    device: torch.device,
    start: Checkpoint | None = None,
    start_path: Path | None = None,
    team: Team | None = None,
) -> Players:
    """Predictor (with the weights of `start`), adversary where there is one, fresh optimisers."""
    team = team or Team()
    predictor = build_predictor(settings, device, start, start_path)
    predictor.recomputed = settings.recompute
    if settings.trained_cascades is not None:
        predictor.train_only(settings.trained_cascades)
    trained = [weight for weight in predictor.parameters() if weight.requires_grad]
    players = Players(
        predictor=predictor,
        shared_predictor=team.data_parallel(predictor),
        optimizer=_optimizer(settings, trained),
        bfloat16=uses_bfloat16(settings, device),
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
        )
        players.adversary_optimizer = torch.optim.Adam(
            adversary.parameters(),
            lr=settings.adversary_lr,
            betas=settings.adversary_betas,
            fused=True,
        )
        players.strength = settings.adversary_strength
        if settings.adversary_replay > 0:
            players.replay = PairStore(settings.adversary_replay)
    return players


def _optimizer(settings: Settings, weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    if settings.optimizer == "muon":
        return Muon(weights, settings.lr)
    return torch.optim.Adam(weights, lr=settings.lr, fused=True)


def train_step(
    settings: Settings, players: Players, batches: Iterable[Batch], epoch: int
) -> dict[str, float]:
    """One step of both players on its batches, and on those of all other processes.

    Returns:
        The mean of each figure over the batches of this process, and the gradients' norms.

    Raises:
        FloatingPointError: a loss or a gradient is not finite; the batch is named.
    """
    sums: dict[str, float] = {}
    remaining = iter(batches)
    for number in range(1, settings.accumulate + 1):
        group = [*itertools.islice(remaining, settings.batches_per_step // settings.accumulate)]
        last = number == settings.accumulate
        values = accumulate_gradients(
            settings, players, group, epoch, settings.accumulate, last=last
        )
        sums = {key: sums.get(key, 0.0) + value for key, value in values.items()}
    means = {key: value / settings.accumulate for key, value in sums.items()}
    return means | step_optimizers(settings, players, group[-1])


def accumulate_gradients(
    settings: Settings,
    players: Players,
    group: Sequence[Batch],
    epoch: int,
    together: int,
    *,
    last: bool = True,
) -> dict[str, float]:
    """Both acts of one batch or of a pair; gradients are added, divided by `together` groups.

    Act 1, the adversary held fixed: loss = (1 - SSIM) + w L1 + streak_weight * streaks +
    strength * BCE(adversary(x), 1/2), the mean over the batches. The two of a pair go through the
    predictor together; one after the other where they differ in shape, k-space not being square.
    Act 2, on the images as constants, and on earlier ones where these are kept: BCE(adversary(x),
    rotated) + gradient penalty, the mean over all of them.
    One run of the adversary serves both.

    Args:
        settings: of the run.
        players: whose gradients are added to.
        group: one batch, or the upright and the transposed one of a pair.
        epoch: counted from 1.
        together: groups of each process in a step.
        last: of them; here, in the last backward, processes average their gradients.

    A loss that is not finite is noted in `players.doubts`, and makes all gradients NaN in all
    processes, so that all of them find it when they step.

    Returns:
        The mean of each figure.
    """
    group = joined(group)
    objective = players.objective
    steers = objective is not None and epoch >= settings.adversary_term_from_epoch
    judges = objective is not None and epoch >= settings.adversary_from_epoch
    values: dict[str, float] = {}
    standing: list[Tensor] = []
    earlier, labels = torch.empty(0), torch.empty(0)
    for number, batch in enumerate(group, start=1):
        ends = last and number == len(group)
        with _alone(players.shared_predictor, not ends):
            loss, figures, image = _reconstruct(settings, players, batch)
            if judges and players.replay is not None:
                standing.append(upright(image.detach(), batch.rotated))
                if number == 1:
                    count = settings.adversary_replay_batch
                    earlier, labels = players.replay.draw(count, like=standing[0])
            if objective is not None and judges:
                share = len(image) / (len(image) * len(group) + len(earlier))
                with _alone(objective.adversary, not ends or len(earlier) > 0):
                    with players.autocast(batch):
                        term, verdict = objective.both_acts(image, batch.rotated, steers=steers)
                    _learn(players, values, verdict, share, together, batch)
            elif objective is not None and steers:
                with players.autocast(batch):
                    term = objective.predictor_term(image, batch.rotated)
            if steers:
                figures["predictor_orientation"] = term.detach()
                loss = loss + players.strength * term
            loss = _doubted(players, "predictor's loss", loss, batch)
            (loss / (together * len(group))).backward()
        _add(values, {key: value.item() for key, value in figures.items()}, 1 / len(group))
    if objective is not None and len(earlier) > 0:
        share = len(earlier) / (sum(len(images) for images in standing) + len(earlier))
        with _alone(objective.adversary, not last):
            with players.autocast(group[-1]):
                verdict = objective.judge(earlier, labels)
            _learn(players, values, verdict, share, together, group[-1])
    if players.replay is not None and standing:
        # The upright half of the images, and then the transposed one.
        players.replay.add(torch.cat(standing).unflatten(0, (2, -1)).movedim(0, 1))
    return values


def _reconstruct(
    settings: Settings, players: Players, batch: Batch
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Its loss without the adversary's term, figures, and the image as large as the target."""
    assert batch.target is not None, "the training set is made with require_target"
    with players.autocast(batch):
        output = players.shared_predictor(batch.masked_kspace, batch.mask, batch.acs_lines)
    target, data_range = batch.target, batch.data_range
    loss, similarity = reconstruction_loss(output, target, data_range, settings.l1_weight)
    figures = {"loss": loss.detach(), "ssim": similarity}
    image, target = crop_to_smaller(output, target)
    if settings.streak_weight > 0:
        streaks = streak_term(
            image,
            target,
            data_range,
            below=settings.streak_below,
            background=settings.streak_background,
        )
        figures["streaks"] = streaks.detach()
        loss = loss + players.softened * settings.streak_weight * streaks
    return loss, figures, image


def _learn(
    players: Players,
    values: dict[str, float],
    verdict: Verdict,
    share: float,
    together: int,
    batch: Batch,
) -> None:
    """The adversary's gradients from a part of the images, and its part of the figures."""
    loss = _doubted(players, "adversary's loss", verdict.loss, batch)
    (loss * (share / together)).backward()
    _add(values, verdict.figures(), share)


def _add(values: dict[str, float], figures: dict[str, float], share: float) -> None:
    for key, value in figures.items():
        values[key] = values.get(key, 0.0) + share * value


def _alone(network: nn.Module, alone: bool) -> AbstractContextManager[None]:
    """Where `alone`, gradients are added in this process and not yet averaged over all."""
    if alone and isinstance(network, DistributedDataParallel):
        return network.no_sync()
    return nullcontext()


def step_optimizers(settings: Settings, players: Players, batch: Batch) -> dict[str, float]:
    """One step of each optimiser that has gradients, which are gone afterwards.

    Raises:
        FloatingPointError: a loss or a gradient is not finite; weights are as before; the batch is
            named, where it is this process's.
    """
    norms = {"grad_norm": clip_gradients(players.predictor, settings.clip_grad_norm)}
    judged = players.adversary is not None and any(
        weight.grad is not None for weight in players.adversary.parameters()
    )
    if players.adversary is not None and judged:
        norms["adversary_grad_norm"] = clip_gradients(players.adversary, settings.clip_grad_norm)
    for name, norm in norms.items():
        if not finite(norm):
            here = f"{name} is {norm.item()} on {batch.describe()} or in another process"
            raise FloatingPointError("; ".join(players.doubts) or here)
    players.optimizer.step()
    players.optimizer.zero_grad(set_to_none=True)
    if players.adversary_optimizer is not None and judged:
        players.adversary_optimizer.step()
        players.adversary_optimizer.zero_grad(set_to_none=True)
    return {name: norm.item() for name, norm in norms.items()}


def set_learning_rates(settings: Settings, players: Players, epochs: float) -> None:
    """Both optimisers' rates after so many epochs, whole ones and the part of the next."""
    pairs = [(players.optimizer, settings.lr), (players.adversary_optimizer, settings.adversary_lr)]
    for optimizer, base in pairs:
        for group in [] if optimizer is None else optimizer.param_groups:
            group["lr"] = players.softened * learning_rate(settings, epochs, base)


def set_weights(settings: Settings, players: Players, step: int) -> None:
    """The orientation term's weight and the penalty's in a step, counted from 1."""
    if players.objective is not None:
        players.strength = players.softened * adversary_strength(settings, step)
        players.objective.reg_param = penalty_weight(settings, step)


def adversary_strength(settings: Settings, step: int) -> float:
    """Weight of the orientation term in a step of the run, counted from 1."""
    ramp = settings.adversary_ramp_steps
    return settings.adversary_strength * (min(1.0, step / ramp) if ramp else 1.0)


def penalty_weight(settings: Settings, step: int) -> float:
    """Weight of the adversary's penalty in a step, counted from 1: the same on average for any n.

    The second derivatives take longer than everything else that the adversary does.
    """
    n = settings.penalty_every
    return settings.reg_param * n if (step - 1) % n == 0 else 0.0


def learning_rate(settings: Settings, epochs: float, base: float) -> float:
    """Rate after so many epochs: base, times a factor every so many of them, not below min.

    The floor is there since 1000 epochs with a tenth every 40 would end at 1e-28. Over the last
    part of the run (`lr_decay`) the rate also falls, with every step, on a straight line to zero.
    """
    drops = 0 if settings.lr_drop_every is None else int(epochs) // settings.lr_drop_every
    rate = base * settings.lr_drop_factor**drops
    left = 1 - epochs / settings.epochs
    if 0 < settings.lr_decay > left:
        rate *= max(left, 0.0) / settings.lr_decay
    return max(rate, min(base, settings.lr_min))


def clip_gradients(network: nn.Module, limit: float | None) -> Tensor:
    """Scale the whole gradient to a norm of at most `limit`; the norm before."""
    norm: Tensor = torch.nn.utils.clip_grad_norm_(
        network.parameters(), float("inf") if limit is None else limit
    )
    return norm


def _doubted(players: Players, what: str, loss: Tensor, batch: Batch) -> Tensor:
    """The loss; if it is not finite, noted, and with gradients that are not finite, either."""
    if finite(loss):
        return loss
    players.doubts.append(f"{what} is {loss.item()} on {batch.describe()}")
    return loss * float("nan")


def _with(adversary: object | None) -> str:
    return "without" if adversary is None else "with"
