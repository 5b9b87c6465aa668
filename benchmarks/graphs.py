"""A step as a CUDA graph: its kernels are recorded once, and one call starts all of them.

A step of one slice starts thousands of small kernels, and a GPU waits for the CPU that starts them.
In a graph are forward passes, losses, backward passes and the norms of the gradients. Outside stay
the reading of the metrics and the optimisers, so that a NaN is found before any weight changes, as
in `training.step`. A graph works on the tensors that it was recorded with: it serves the batches of
one size whose masks have as many columns, each copied into those tensors.

Measured by `benchmarks.step`; training does not use it.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Act = Callable[[], dict[str, Tensor]]

WARM_UP = 3  # runs before the recording, in which libraries choose algorithms and allocate


def graphed(act: Act, networks: Sequence[nn.Module] = ()) -> Act:
    """`act` as a CUDA graph.

    Args:
        act: returns tensors and gives the networks gradients. It reads nothing from the GPU, and
            always works on the same tensors.
        networks: without gradients now.

    Returns:
        What does the same. The tensors that it returns, and the gradients, are overwritten by the
        next call.

    Raises:
        RuntimeError: `act` does something that a graph cannot hold.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            act()
            clear(networks)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = act()
    weights = [weight for network in networks for weight in network.parameters()]
    gradients = [weight.grad for weight in weights]

    def replay() -> dict[str, Tensor]:
        graph.replay()
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient  # whoever cleared it after the last call
        return results

    clear(networks)
    return replay


def clear(networks: Sequence[nn.Module]) -> None:
    """Drop all gradients."""
    for network in networks:
        network.zero_grad(set_to_none=True)


def difference(one: Act, other: Act, networks: Sequence[nn.Module]) -> float:
    """The relative difference |a - b| / |a| of two acts, in results or in gradients, if larger.

    Both acts are called once; no gradients are left.
    """
    found = []
    for act in (one, other):
        results = [value.detach().double().clone() for value in act().values()]
        weights = [weight for network in networks for weight in network.parameters()]
        gradients = [weight.grad.double() for weight in weights if weight.grad is not None]
        found.append([torch.cat([x.flatten() for x in xs]) for xs in (results, gradients) if xs])
        clear(networks)
    return max(
        float((a - b).norm() / a.norm().clamp(min=math.ulp(0.0)))
        for a, b in zip(*found, strict=True)
    )


def compare(
    act: Act, graph: Act, networks: Sequence[nn.Module], tolerance: float
) -> dict[str, float]:
    """How much a graph differs from the act that it records, and the act from itself.

    A GPU adds in any order, so that no two runs are the same.

    Args:
        act: what was recorded.
        graph: what `graphed` made of it.
        networks: without gradients now.
        tolerance: for the graph, beside three times the difference of two runs of the act.

    Raises:
        RuntimeError: the graph differs by more than that.
    """
    noise, apart = (difference(act, other, networks) for other in (act, graph))
    if not apart < tolerance + 3 * noise:
        raise RuntimeError(
            f"the graph differs from the step by {apart:.2g}; the step from itself by {noise:.2g}"
        )
    return {"graph_difference": apart, "own_difference": noise}
