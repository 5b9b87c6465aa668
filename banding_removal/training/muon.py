"""Muon: the update of every convolution is orthogonalised, so that all directions learn alike.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). The momentum of a
convolution's gradient, (out, in, 3, 3) as a matrix (out, in * 9), is replaced by the nearest matrix
whose singular values are about 1; a quintic Newton-Schulz iteration finds it. Steps of Adam are
dominated by the few directions in which the gradient is large.

torch.optim.Muon accepts matrices only; other weights need a second optimiser.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

MOMENTUM = 0.95
BETAS = (0.9, 0.999)
EPSILON = 1e-8
# Part of the learning rate that the weights under Adam have: with these networks it suits Adam when
# the whole suits Muon.
ADAM_PART = 0.1
# a s + b s^3 + c s^5 with the largest slope at 0 that keeps singular values from 0.7 to 1.2.
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Muon for convolutions larger than 1x1, Adam (Kingma and Ba, 2015) for everything else.

    Everything else is 1x1 convolutions, biases and scalars. Weights without a gradient stay.

    Args:
        weights: of the network.
        lr: of Muon, about ten times what suits Adam alone; Adam's part has a tenth of it.
    """

    def __init__(self, weights: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(weights, {"lr": lr})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state that `state_dict` returned.

        Raises:
            ValueError: it is another optimiser's.
        """
        for group in state_dict["param_groups"]:
            if other := group.keys() - self.param_groups[0].keys():
                raise ValueError(f"Muon has no {', '.join(sorted(other))}")
        super().load_state_dict(state_dict)
        for weight, state in self.state.items():
            if "step" in state:
                state["step"] = state["step"].to(weight.device)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all weights that have a gradient.

        Raises:
            ValueError: a closure is given; the loss is not evaluated again.
        """
        if closure is not None:
            raise ValueError("Muon takes no closure: it does not evaluate the loss again")
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            alike: dict[torch.Size, list[Tensor]] = {}
            others = []
            for weight in weights:
                if weight.ndim == 4 and weight[0, 0].numel() > 1:
                    alike.setdefault(weight.shape, []).append(weight)
                else:
                    others.append(weight)
            for same_shape in alike.values():
                self._step_muon(same_shape, group["lr"])
            self._step_adam(others, ADAM_PART * group["lr"])

    def _step_muon(self, weights: list[Tensor], lr: float) -> None:
        """Update weights of one shape together: they are small and many."""
        gradients = torch.stack([_gradient(weight).flatten(1) for weight in weights])
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        kept = [self.state[weight]["momentum"] for weight in weights]
        momenta = torch.stack([momentum.flatten(1) for momentum in kept])
        momenta.lerp_(gradients, 1 - MOMENTUM)
        updates = orthogonal(torch.lerp(gradients, momenta, MOMENTUM))
        rows, columns = updates.shape[1:]
        updates *= lr * math.sqrt(max(1.0, rows / columns))
        # One call for a whole list: on a GPU, launching many small kernels takes the time.
        torch._foreach_copy_(kept, [*momenta.view(-1, *weights[0].shape)])
        torch._foreach_sub_(weights, [*updates.reshape(-1, *weights[0].shape)])

    def _step_adam(self, weights: list[Tensor], lr: float) -> None:
        if not weights:
            return
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] = {
                    "exp_avg": torch.zeros_like(weight),
                    "exp_avg_sq": torch.zeros_like(weight),
                    "step": torch.zeros((), device=weight.device),
                }
        states = [self.state[weight] for weight in weights]
        # On a GPU one kernel for all weights, which also counts the steps there.
        on_gpu = all(weight.is_cuda for weight in weights)
        adam(
            weights,
            [_gradient(weight) for weight in weights],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=on_gpu,
            foreach=False,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=lr,
            weight_decay=0.0,
            eps=EPSILON,
            maximize=False,
        )


def _gradient(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return weight.grad


def orthogonal(matrices: Tensor) -> Tensor:
    """About U V^T of each matrix U S V^T, that is, with singular values of about 1.

    (B, m, n) -> (B, m, n). Zeros stay zeros; singular values below about 1e-3 of the norm do not
    reach 1.
    """
    a, b, c = QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    norm = torch.linalg.matrix_norm(x, keepdim=True)
    x = x / torch.where(norm > 0, norm, 1.0)
    for _ in range(ITERATIONS):
        # a x + (b s + c s s) x with s = x x^T, in as few kernels as possible
        square = x @ x.mT
        polynomial = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x
