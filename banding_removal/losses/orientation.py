"""The losses of orientation-adversarial training, for any reconstruction network.

Defazio, Murrell, Recht, "MRI Banding Removal via Adversarial Training" (2020), section 3: training
slices are transposed with probability 1/2 before they are undersampled. The adversary sees the
upright reconstruction and predicts whether its slice was transposed; only banding can reveal it.
A training step has two acts, each followed by its own backward pass:

    term = objective.predictor_term(image, rotated)       # add it to the predictor's loss
    losses = objective.adversary_loss(image, rotated)     # losses.loss.backward() alone
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from banding_removal.losses.cells import cell_weights
from banding_removal.metrics.low_signal_view import low_signal_view

Target = Literal["uncertain", "flipped"]
Change = Literal["everything", "streaks"]
View = Literal["image", "low_signal"]
ON_HOST = ("cpu",)  # kinds of devices whose values can be read without waiting for them


def upright(image: Tensor, rotated: Tensor) -> Tensor:
    """Images (B, 1, h, w) with upright anatomy: transposed back where `rotated` (B,) is 1.

    Raises:
        ValueError: the images are not square and only some of them are transposed.
    """
    turned = rotated.bool()
    square = image.shape[-2] == image.shape[-1]
    if not square or rotated.device.type in ON_HOST:
        if turned.all():
            return image.swapaxes(-2, -1)
        if not turned.any():
            return image
    if not square:
        raise ValueError(f"both orientations in one batch of {tuple(image.shape[-2:])} images")
    return torch.where(turned[:, None, None, None], image.swapaxes(-2, -1), image)


def adversary_input(image: Tensor, rotated: Tensor, view: View = "image") -> Tensor:
    """What the adversary sees: upright, three equal channels, mean 0 and standard deviation 1.

    Real (B, 1, h, w) -> (B, 3, h, w). The standard deviation is the unbiased one over all 3 h w
    values of a sample. A constant image becomes zero.

    Args:
        image: reconstruction as the network made it (transposed where rotated).
        rotated: (B,), 1 where the slice was transposed before undersampling.
        view: the whole `image`, as published, or its low-signal texture (`low_signal_view`).
    """
    x = upright(image, rotated)
    if view == "low_signal":
        x = low_signal_view(x)
    x = x.expand(-1, 3, -1, -1)
    var, mean = torch.var_mean(x, dim=(1, 2, 3), keepdim=True)
    # The root comes after `where`: its gradient at 0 is infinite.
    return (x - mean) / torch.where(var > 0, var, 1.0).sqrt()


def only_streaks(image: Tensor) -> Tensor:
    """The identity, with a gradient that is filtered to streaks along the last axis.

    The filter keeps the frequencies (cycles per pixel) that are higher along readout (h) than along
    phase encode (w); banding lies there. New texture across the streaks would confuse an adversary
    as well as removing them does; with this filter, its gradient can only change the streaks.

    Args:
        image: reconstruction as the network made it, real (B, 1, h, w).
    """
    result: Tensor = _OnlyStreaks.apply(image)
    return result


class _OnlyStreaks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor) -> Tensor:  # noqa: ARG004
        return image.view_as(image)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        height, width = gradient.shape[-2:]
        along_readout = torch.fft.fftfreq(height, device=gradient.device).abs()[:, None]
        along_phase_encode = torch.fft.rfftfreq(width, device=gradient.device)
        kept = along_readout > along_phase_encode
        return torch.fft.irfft2(torch.fft.rfft2(gradient) * kept, s=(height, width))


@dataclass(frozen=True, kw_only=True)
class AdversaryLosses:
    """The adversary's loss and its parts: scalars, except for `logits` (B, members).

    Logits of a grid are averaged over its cells here.
    """

    loss: Tensor  # classification + penalty, for one backward pass
    classification: Tensor
    penalty: Tensor
    logits: Tensor
    accuracy: Tensor  # of these logits

    @property
    def bias(self) -> Tensor:
        """The mean logit. Far from 0, the adversary gives every image the same label."""
        return self.logits.mean()

    def metrics(self) -> dict[str, Tensor]:
        """What is logged: scalars without gradient."""
        return {
            "adversary_orientation": self.classification,
            "penalty": self.penalty,
            "accuracy": self.accuracy,
            "bias": self.bias,
        }


class OrientationObjective:
    """The losses of both players around an adversary, image (B, 3, h, w) -> logits (B, members).

    The logits may also form a grid, (B, members, rows, columns): every cell classifies the
    orientation by itself, and losses are averaged over cells. A grid of one cell acts like a single
    logit.

    Args:
        adversary: any classifier, wrapped for distributed training or not.
        target: what the predictor wants the adversary to answer: `uncertain`, probability 1/2 (the
            paper's), or `flipped`, the wrong label.
        reg_param: weight of the gradient penalty, that is, of the squared norm of the gradient of
            the summed logits with respect to the image, divided by the number of cells. This is R1
            of Mescheder et al., "Which Training Methods for GANs do actually Converge?" (2018), on
            images with either label.
        changes: what the adversary's gradient may change in the image: `everything`, or only
            `streaks` (`only_streaks`).
        view: what the adversary sees of an image (`adversary_input`).
        background: weight of background in the predictor's term, where anatomy has 1
            (`cell_weights`); None: all cells count alike, as published.
    """

    def __init__(
        self,
        adversary: nn.Module,
        *,
        target: Target = "uncertain",
        reg_param: float = 0.1,
        changes: Change = "everything",
        view: View = "image",
        background: float | None = None,
    ) -> None:
        self.adversary = adversary
        self.target = target
        self.reg_param = reg_param
        self.changes = changes
        self.view = view
        self.background = background

    def predictor_term(self, image: Tensor, rotated: Tensor) -> Tensor:
        """BCE(adversary(image), target), a scalar: the mean over batch, members and cells.

        The image gets a gradient, the adversary does not: its weights are held fixed, and its
        wrapper for distributed training is bypassed.

        Args:
            image: reconstruction as the network made it (transposed where rotated), (B, 1, h, w).
            rotated: (B,), 1 where the slice was transposed before undersampling.
        """
        network = getattr(self.adversary, "module", self.adversary)
        trainable = [weight for weight in network.parameters() if weight.requires_grad]
        for weight in trainable:
            weight.requires_grad_(False)
        try:
            logits = _float32(network(self._input(image, rotated)))
        finally:
            for weight in trainable:
                weight.requires_grad_(True)
        return self._predictor_term(logits, image, rotated)

    def adversary_loss(self, image: Tensor, rotated: Tensor) -> AdversaryLosses:
        """BCE(adversary(image), rotated) + reg_param * mean over the batch of |d sum(logit)/dx|^2.

        The image is detached; arguments as in `predictor_term`. Call backward once, on
        `AdversaryLosses.loss`: two backward passes give wrong gradients under
        DistributedDataParallel.
        """
        return self.adversary_loss_upright(upright(image, rotated), rotated, self.reg_param)

    def adversary_loss_upright(
        self, image: Tensor, rotated: Tensor, penalty_weight: float
    ) -> AdversaryLosses:
        """`adversary_loss` of images that are already upright, with a given penalty weight.

        Args:
            image: upright, (B, 1, h, w).
            rotated: (B,), 1 where the slice was transposed before undersampling.
            penalty_weight: in place of `reg_param`; 0 leaves the penalty out.
        """
        x = adversary_input(image.detach(), torch.zeros_like(rotated), self.view).requires_grad_()
        return self._losses(x, _float32(self.adversary(x)), rotated, penalty_weight)[0]

    def both_terms(
        self, image: Tensor, rotated: Tensor, penalty_weight: float
    ) -> tuple[Tensor, AdversaryLosses]:
        """`predictor_term` and `adversary_loss` of the same image, from one forward pass.

        Values and gradients are those of the two, and the backward passes may come in either order.
        With z the only logit of an image x, the term's gradient is (sigmoid(z) - target) dz/dx, and
        the penalty needs dz/dx as well: it is computed once. This saves a sixth of a training step.

        Args:
            image: as in `predictor_term`.
            rotated: as in `predictor_term`.
            penalty_weight: in place of `reg_param`; 0 leaves the penalty out.
        """
        x = self._input(image, rotated)
        constant = x.detach().requires_grad_()
        logits = _float32(self.adversary(constant))
        losses, gradient = self._losses(constant, logits, rotated, penalty_weight)
        term = self._predictor_term(logits, image, rotated)
        if gradient is not None and logits[0].numel() == 1:
            (by_logit,) = torch.autograd.grad(term, logits, retain_graph=True)
            gradient = by_logit.view(-1, 1, 1, 1) * gradient.detach()
        else:
            (gradient,) = torch.autograd.grad(term, constant, retain_graph=True)
        linear = (x * gradient).sum()  # its gradient by x is that of the term
        return term.detach() + linear - linear.detach(), losses

    def _input(self, image: Tensor, rotated: Tensor) -> Tensor:
        """What the adversary sees of the predictor's image, with the gradient that it may have."""
        changed = only_streaks(image) if self.changes == "streaks" else image
        return adversary_input(changed, rotated, self.view)

    def _predictor_term(self, logits: Tensor, image: Tensor, rotated: Tensor) -> Tensor:
        """BCE of the logits of an image, with the probabilities that the predictor aims at."""
        if self.target == "uncertain":
            wanted = torch.full_like(logits, 0.5)
        else:
            wanted = _label(1 - rotated, logits)
        weights = None
        if self.background is not None:
            rows, columns = logits.shape[2:] if logits.ndim == 4 else (1, 1)
            seen = upright(image.detach(), rotated)
            weights = cell_weights(seen, rows, columns, background=self.background).to(logits)
            weights = weights.view(len(logits), 1, *logits.shape[2:])
        return F.binary_cross_entropy_with_logits(logits, wanted, weight=weights)

    def _losses(
        self, x: Tensor, logits: Tensor, rotated: Tensor, penalty_weight: float
    ) -> tuple[AdversaryLosses, Tensor | None]:
        """The losses, and the gradient of the summed logits by x if there is a penalty."""
        classification = F.binary_cross_entropy_with_logits(logits, _label(rotated, logits))
        penalty, gradient = torch.zeros_like(classification), None
        if penalty_weight > 0:
            (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
            cells = logits[0, 0].numel()
            penalty = penalty_weight * gradient.square().sum(dim=(1, 2, 3)).mean() / cells
        by_image = logits.detach().flatten(2).mean(dim=2) if logits.ndim > 2 else logits.detach()
        losses = AdversaryLosses(
            loss=classification + penalty,
            classification=classification.detach(),
            penalty=penalty.detach(),
            logits=by_image,
            accuracy=((by_image > 0) == (rotated > 0.5)[:, None]).to(logits).mean(),
        )
        return losses, gradient


def _float32(logits: Tensor) -> Tensor:
    """In float32 at least: losses and penalty are not computed in autocast's precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _label(rotated: Tensor, logits: Tensor) -> Tensor:
    """(B,) in the shape of the logits (B, ...)."""
    return rotated.to(logits).view(-1, *[1] * (logits.ndim - 1)).expand_as(logits)
