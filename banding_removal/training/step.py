"""One training step in two acts, as in Defazio et al. (2020), section 3.

P is the predictor, A the adversary (it returns a logit; BCE contains the sigmoid), k masked
k-space, t the target, and `rotated` the label. The weights are `l1_weight` (w), `streak_weight`
(w_s), `orientation_weight` (s) and `penalty_weight` (g):

    act 1    P minimises  (1 - SSIM)(x, t) + w L1(x, t) + w_s streaks(x, t) + s BCE(A(x), 1/2),
             with x = P(k) and A held fixed
    act 2    A minimises  BCE(A(x), rotated) + g |dA(x)/dx|^2,   with x held fixed

A group of batches (one batch, or the two orientations of a pair) goes through both acts. The
gradients of all groups of a step, and of all processes, are averaged; then both optimisers step.

A step reads its metrics from the device once, before the optimisers' steps: a GPU works while the
CPU starts both acts, and again while the CPU does what comes between two steps.
"""

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from banding_removal.data.batch import Batch, joined
from banding_removal.data.operators import crop_to_smaller
from banding_removal.losses.adversary_input import upright
from banding_removal.losses.orientation import AdversaryLosses
from banding_removal.losses.reconstruction import reconstruction_loss
from banding_removal.losses.streaks import streak_term
from banding_removal.model.predictors import reconstruct
from banding_removal.training.compute import fetch
from banding_removal.training.players import Players
from banding_removal.training.replay import PairStore
from banding_removal.training.schedule import StepSettings


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """A batch after act 1, as act 2 needs it."""

    image: Tensor  # x without gradient, (B, 1, h, w), as large as the target
    rotated: Tensor  # (B,), its label
    adversary_losses: AdversaryLosses | None = None  # of this image, if act 1 has computed them


def train_step(
    players: Players, groups: Iterable[Sequence[Batch]], settings: StepSettings
) -> dict[str, float]:
    """One step of both players, together with all other processes.

    Args:
        players: both are updated, and their gradients cleared.
        groups: `settings.num_groups` groups of batches.
        settings: the learning rates and the weights of the losses in this step.

    Returns:
        The mean of each metric over the groups of this process, and the gradients' norms.

    Raises:
        FloatingPointError: a loss or a gradient is NaN or infinite, in any process. The weights
            are unchanged. The message names the slices if this process had them.
    """
    metrics_of_groups: list[dict[str, Tensor]] = []
    slices: list[str] = []
    for number, group in enumerate(groups, start=1):
        last = number == settings.num_groups
        reconstructions, metrics = predictor_step(players, group, settings, average=last)
        if settings.trains_adversary:
            metrics |= adversary_step(players, reconstructions, settings, average=last)
        metrics_of_groups.append(metrics)
        slices.append(", ".join(batch.describe() for batch in group))
    *rows, norms = fetch([*metrics_of_groups, clip_all_gradients(players, settings)])
    _check(rows, norms, slices)
    step_optimizers(players, settings)
    means = {name: sum(row[name] for row in rows) / settings.num_groups for name in rows[0]}
    return means | norms


def predictor_step(
    players: Players, group: Sequence[Batch], settings: StepSettings, *, average: bool = True
) -> tuple[list[Reconstruction], dict[str, Tensor]]:
    """Act 1: (1 - SSIM)(x, t) + w L1(x, t) + w_s streaks(x, t) + s BCE(A(x), 1/2), with x = P(k).

    The gradients are added to the predictor's. The two batches of a pair go through the predictor
    together or, if their k-space is not square, one after the other.

    Args:
        players: only the predictor gets gradients.
        group: one batch, or the two of a pair.
        settings: the weights of the losses in this step.
        average: average all gradients over the processes; true for the last group of a step.

    Returns:
        The reconstruction of each batch, for act 2, and the metrics, scalars on the device.
    """
    batches = joined(group)
    # If act 2 takes exactly these images, one forward pass of the adversary serves both acts.
    both_acts = settings.trains_adversary and players.replay is None and len(batches) == 1
    reconstructions: list[Reconstruction] = []
    rows: list[dict[str, Tensor]] = []
    for number, batch in enumerate(batches, start=1):
        with no_sync_if(players.parallel_predictor, not average or number < len(batches)):
            with players.autocast():
                output = reconstruct(players.parallel_predictor, batch)  # P(k)
            # (1 - SSIM)(x, t) + w L1(x, t) + w_s streaks(x, t)
            loss, image, metrics = _predictor_loss(output, batch, settings)
            losses = None
            if settings.uses_adversary and players.objective is not None:
                with no_sync_if(players.objective.adversary, not average):
                    term, losses = _orientation_term(players, image, batch, settings, both_acts)
                loss = loss + settings.orientation_weight * term  # + s BCE(A(x), 1/2)
                metrics["predictor_orientation"] = term.detach()
            _backward(loss, settings.num_groups * len(batches))
        reconstructions.append(
            Reconstruction(image=image.detach(), rotated=batch.rotated, adversary_losses=losses)
        )
        rows.append(metrics)
    means = {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}
    return reconstructions, means


def _predictor_loss(
    output: Tensor, batch: Batch, settings: StepSettings
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The loss of act 1 without the adversary, the image x cropped like its target, and metrics.

    Add a further term here, computed from `image` and `target`. Both are equally large, in the unit
    of the files, not transposed back: phase encoding is along the last axis. The metric `loss`,
    which is compared with validation and shows whether training diverges, is the reconstruction
    loss alone.
    """
    assert batch.target is not None, "the training set is made with require_target"
    loss, similarity = reconstruction_loss(
        output, batch.target, batch.data_range, settings.l1_weight
    )
    metrics = {"loss": loss.detach(), "ssim": similarity}
    image, target = crop_to_smaller(output, batch.target)
    if settings.streak_weight > 0:
        streaks = streak_term(
            image,
            target,
            batch.data_range,
            below=settings.streak_below,
            background=settings.streak_background,
        )
        metrics["streaks"] = streaks.detach()
        loss = loss + settings.streak_weight * streaks
    return loss, image, metrics


def _orientation_term(
    players: Players, image: Tensor, batch: Batch, settings: StepSettings, both_acts: bool
) -> tuple[Tensor, AdversaryLosses | None]:
    """The predictor's term BCE(A(x), 1/2) and, for both acts, the adversary's losses."""
    assert players.objective is not None
    with players.autocast():
        if both_acts:
            return players.objective.both_terms(image, batch.rotated, settings.penalty_weight)
        return players.objective.predictor_term(image, batch.rotated), None


def adversary_step(
    players: Players,
    reconstructions: Sequence[Reconstruction],
    settings: StepSettings,
    *,
    average: bool = True,
) -> dict[str, Tensor]:
    """Act 2: BCE(A(x), rotated) + g |dA(x)/dx|^2, with x held fixed.

    The gradients are added to the adversary's. If earlier reconstructions are kept
    (`players.replay`), some of them are added to the batch, and the new ones are kept, too.

    Args:
        players: only the adversary gets gradients.
        reconstructions: what `predictor_step` has returned.
        settings: the weight of the gradient penalty in this step.
        average: average all gradients over the processes; true for the last group of a step.

    Returns:
        The metrics, scalars on the device.
    """
    assert players.objective is not None
    losses = reconstructions[0].adversary_losses
    if losses is not None:
        with no_sync_if(players.objective.adversary, not average):
            _backward(losses.loss, settings.num_groups)
        return losses.metrics()
    images = torch.cat([upright(each.image, each.rotated) for each in reconstructions])
    labels = torch.cat([each.rotated for each in reconstructions])
    if players.replay is not None:
        images, labels = _with_earlier(players.replay, images, labels, settings.replay_batch)
    with no_sync_if(players.objective.adversary, not average):
        with players.autocast():
            losses = players.objective.adversary_loss_upright(
                images, labels, settings.penalty_weight
            )
        _backward(losses.loss, settings.num_groups)
    return losses.metrics()


def _with_earlier(
    replay: PairStore, images: Tensor, labels: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Images and labels with those of up to `count` earlier pairs; the new pairs are kept."""
    earlier, earlier_labels = replay.draw(count, like=images)
    # The first half of the images has phase encoding along x, the second along y.
    replay.add(images.unflatten(0, (len(replay.orientations), -1)).movedim(0, 1))
    return torch.cat([images, earlier]), torch.cat([labels, earlier_labels])


def _backward(loss: Tensor, count: int) -> None:
    """Add the gradients of loss / count.

    If the loss is NaN or infinite, they are all NaN, also in the other processes after averaging.
    """
    one_or_nan = torch.where(loss.detach().isfinite(), 1.0, math.nan)
    (loss * one_or_nan / count).backward()


def no_sync_if(network: nn.Module, condition: bool) -> AbstractContextManager[None]:
    """DistributedDataParallel's `no_sync` if the condition holds: gradients stay local."""
    if condition and isinstance(network, DistributedDataParallel):
        return network.no_sync()
    return nullcontext()


def clip_all_gradients(players: Players, settings: StepSettings) -> dict[str, Tensor]:
    """Clip the gradients of the players that learn; returns their norms before, on the device."""
    norms = {"grad_norm": clip_gradients(players.predictor, settings.clip_grad_norm)}
    if settings.trains_adversary:
        assert players.adversary is not None
        norms["adversary_grad_norm"] = clip_gradients(players.adversary, settings.clip_grad_norm)
    return norms


def _check(
    rows: Sequence[dict[str, float]], norms: dict[str, float], slices: Sequence[str]
) -> None:
    """Raise FloatingPointError if a norm is NaN or infinite: then a loss or a gradient was."""
    losses = [
        f"{name} is {value} on {group}"
        for row, group in zip(rows, slices, strict=True)
        for name, value in row.items()
        if not math.isfinite(value)
    ]
    for name, norm in norms.items():
        if not math.isfinite(norm):
            here = f"{name} is {norm} on {'; '.join(slices)} or in another process"
            raise FloatingPointError("; ".join(losses) or here)


def step_optimizers(players: Players, settings: StepSettings) -> None:
    """One step of each optimiser; the gradients are cleared."""
    players.set_learning_rates(settings.lr, settings.adversary_lr)
    optimizers: list[torch.optim.Optimizer] = [players.optimizer]
    if settings.trains_adversary:
        assert players.adversary_optimizer is not None
        optimizers.append(players.adversary_optimizer)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def clip_gradients(network: nn.Module, limit: float | None) -> Tensor:
    """Scale the whole gradient to a norm of at most `limit`; returns the norm before."""
    norm: Tensor = torch.nn.utils.clip_grad_norm_(
        network.parameters(), math.inf if limit is None else limit
    )
    return norm
