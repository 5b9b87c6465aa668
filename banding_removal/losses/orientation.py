"""The orientation adversary's objective, for any reconstruction network.

Defazio, Murrell, Recht, "MRI Banding Removal via Adversarial Training" (2020), section 3: training
slices are transposed with probability 1/2 before they are undersampled; an adversary sees the
upright reconstruction and says whether that happened. Only banding can tell it. In two acts:

    term = objective.predictor_term(image, rotated)          # added to the predictor's loss
    verdict = objective.adversary_loss(image, rotated)       # then verdict.loss.backward() alone

or, the adversary being run once for both, `term, verdict = objective.both_acts(image, rotated)`.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from banding_removal.metrics.low_signal_view import low_signal_view

Target = Literal["uncertain", "flipped"]
Change = Literal["everything", "streaks"]
View = Literal["image", "low_signal"]


def upright(image: Tensor, rotated: Tensor) -> Tensor:
    """Images (B, 1, h, w) as the anatomy stands: transposed back where `rotated` (B,) is 1.

    Raises:
        ValueError: images that are not square, of which only some are transposed.
    """
    turned = rotated.bool()
    if turned.all():
        return image.swapaxes(-2, -1)
    if not turned.any():
        return image
    if image.shape[-2] != image.shape[-1]:
        raise ValueError(f"both orientations in one batch of {tuple(image.shape[-2:])} images")
    return torch.where(turned[:, None, None, None], image.swapaxes(-2, -1), image)


def adversary_input(image: Tensor, rotated: Tensor, view: View = "image") -> Tensor:
    """What the adversary sees: upright, three equal channels, mean 0 and standard deviation 1.

    Real (B, 1, h, w) -> (B, 3, h, w). The deviation is the unbiased one over all 3 h w values of a
    sample; a constant image stays zero.

    Args:
        image: reconstruction as it was made (transposed where rotated).
        rotated: (B,), 1 where transposed before undersampling.
        view: the whole `image`, as published, or its low-signal texture (`low_signal_view`).
    """
    x = upright(image, rotated)
    if view == "low_signal":
        x = low_signal_view(x)
    x = x.expand(-1, 3, -1, -1)
    var, mean = torch.var_mean(x, dim=(1, 2, 3), keepdim=True)
    # The root behind the `where`: its gradient at 0 is infinite.
    return (x - mean) / torch.where(var > 0, var, 1.0).sqrt()


def only_streaks(image: Tensor) -> Tensor:
    """The same image, (B, 1, h, w) as it was made, whose gradient holds streaks along w alone.

    Those are the frequencies that are higher along readout (h, cycles a pixel) than along phase
    encode (w), where banding lies. An adversary is content, too, when texture is written across the
    streaks; with this it can only have the streaks changed.
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
class Verdict:
    """The adversary's loss and what it consists of; all scalars but `logits` (B, members).

    A grid's logits are averages over its cells here.
    """

    loss: Tensor  # classification + penalty: one backward for both
    classification: Tensor
    penalty: Tensor
    logits: Tensor
    accuracy: Tensor  # of these logits

    @property
    def bias(self) -> Tensor:
        """Mean logit: far from 0, the adversary always says the same."""
        return self.logits.mean()

    def figures(self) -> dict[str, float]:
        """What is logged."""
        return {
            "adversary_orientation": self.classification.item(),
            "penalty": self.penalty.item(),
            "accuracy": self.accuracy.item(),
            "bias": self.bias.item(),
        }


class OrientationObjective:
    """Both players' losses around an adversary, image (B, 3, h, w) -> logits (B, members).

    The logits may also be a grid, (B, members, rows, columns): each cell says for itself which
    orientation it sees, and the losses are means over cells. One cell is a single logit.

    Args:
        adversary: any classifier, wrapped for distributed training or not.
        target: what the predictor wants to hear: `uncertain`, probability 1/2 (the paper's), or
            `flipped`, the wrong label.
        reg_param: weight of the penalty on the squared gradient norm of the logits with respect to
            the image (Mescheder et al., "Which Training Methods for GANs do actually Converge?",
            2018, R1, here on predictions of both labels). The norm is that of the sum of the
            logits, squared and divided by the number of cells.
        changes: what in its image the predictor hears of: `everything`, or `only_streaks`.
        view: of the images, that the adversary is shown (`adversary_input`).
    """

    def __init__(
        self,
        adversary: nn.Module,
        *,
        target: Target = "uncertain",
        reg_param: float = 0.1,
        changes: Change = "everything",
        view: View = "image",
    ) -> None:
        self.adversary = adversary
        self.target = target
        self.reg_param = reg_param
        self.changes = changes
        self.view = view

    def predictor_term(self, image: Tensor, rotated: Tensor) -> Tensor:
        """BCE(adversary(image), target), scalar, mean over batch, members and cells.

        Gradients flow to the image and not to the adversary, whose weights are held fixed and
        whose distributed wrapper is left out of it.

        Args:
            image: reconstruction as it was made (transposed where rotated), real (B, 1, h, w).
            rotated: (B,), 1 where transposed before undersampling.
        """
        network = getattr(self.adversary, "module", self.adversary)
        trainable = [weight for weight in network.parameters() if weight.requires_grad]
        for weight in trainable:
            weight.requires_grad_(False)
        try:
            logits = _exact(network(self._seen(image, rotated)))
        finally:
            for weight in trainable:
                weight.requires_grad_(True)
        return F.binary_cross_entropy_with_logits(logits, self._wanted(logits, rotated))

    def both_acts(
        self, image: Tensor, rotated: Tensor, *, steers: bool = True
    ) -> tuple[Tensor, Verdict]:
        """`predictor_term` and `adversary_loss` of the same images, the adversary being run once.

        The two are as if each had its own run, and may go backward in either order. With z the
        logit of an image x, the first one's gradient is (sigmoid(z) - target) dz/dx, and dz/dx is
        what the penalty is made of; only where there are several logits, or no penalty, it is made
        for itself.

        Args:
            image: as in `predictor_term`.
            rotated: as in `predictor_term`.
            steers: false: the first term is wanted as a number, without a gradient.
        """
        x = self._seen(image, rotated)
        shown = x.detach().requires_grad_()
        logits = _exact(self.adversary(shown))
        wanted = self._wanted(logits, rotated)
        term = F.binary_cross_entropy_with_logits(logits, wanted)
        verdict, gradient = self._verdict(shown, logits, rotated)
        if not steers:
            return term.detach(), verdict
        if gradient is not None and logits[0].numel() == 1:
            factor = (torch.sigmoid(logits) - wanted).detach() / len(logits)
            by_shown = factor.view(-1, 1, 1, 1) * gradient.detach()
        else:
            (by_shown,) = torch.autograd.grad(term, shown, retain_graph=True)
        return _ValueWithGradient.apply(x, term.detach(), by_shown), verdict

    def adversary_loss(self, image: Tensor, rotated: Tensor) -> Verdict:
        """BCE(adversary(image), rotated) + reg_param * mean over the batch of |d sum(logit)/dx|^2.

        The image is detached; arguments as in `predictor_term`. Backward must be called once, on
        `Verdict.loss`: two backwards give wrong gradients under DistributedDataParallel.
        """
        return self.judge(upright(image, rotated), rotated)

    def judge(self, image: Tensor, rotated: Tensor) -> Verdict:
        """`adversary_loss` of images that are upright already, of whichever `rotated`."""
        upright_already = torch.zeros_like(rotated)
        x = adversary_input(image.detach(), upright_already, self.view).requires_grad_()
        return self._verdict(x, _exact(self.adversary(x)), rotated)[0]

    def _verdict(self, x: Tensor, logits: Tensor, rotated: Tensor) -> tuple[Verdict, Tensor | None]:
        """The verdict, and the gradient of the sum of the logits where it was needed."""
        classification = F.binary_cross_entropy_with_logits(logits, _label(rotated, logits))
        penalty, gradient = torch.zeros_like(classification), None
        if self.reg_param > 0:
            (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
            cells = logits[0, 0].numel()
            penalty = self.reg_param * gradient.square().sum(dim=(1, 2, 3)).mean() / cells
        by_image = logits.detach().flatten(2).mean(dim=2) if logits.ndim > 2 else logits.detach()
        verdict = Verdict(
            loss=classification + penalty,
            classification=classification.detach(),
            penalty=penalty.detach(),
            logits=by_image,
            accuracy=((by_image > 0) == (rotated > 0.5)[:, None]).to(logits).mean(),
        )
        return verdict, gradient

    def _seen(self, image: Tensor, rotated: Tensor) -> Tensor:
        """What the adversary sees of the predictor's image, with the gradient that it may have."""
        changed = only_streaks(image) if self.changes == "streaks" else image
        return adversary_input(changed, rotated, self.view)

    def _wanted(self, logits: Tensor, rotated: Tensor) -> Tensor:
        """Probabilities that the predictor would have the adversary say, like the logits."""
        if self.target == "uncertain":
            return torch.full_like(logits, 0.5)
        return _label(1 - rotated, logits)


class _ValueWithGradient(torch.autograd.Function):
    """A scalar whose gradient with respect to x is known already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, by_x: Tensor) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(by_x)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (by_x,) = ctx.saved_tensors
        return gradient * by_x, None, None


def _exact(logits: Tensor) -> Tensor:
    """In float32 at least: losses and penalty are not made in autocast's precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _label(rotated: Tensor, logits: Tensor) -> Tensor:
    """(B,) in the shape of the logits (B, ...)."""
    return rotated.to(logits).view(-1, *[1] * (logits.ndim - 1)).expand_as(logits)
