"""Cost of a pretraining step on paper: arithmetic, memory traffic, memory, from the sizes alone."""

import math
from dataclasses import dataclass

from banding_removal.model.predictor import Predictor
from banding_removal.model.unet import PAD_MULTIPLE

LANES = 16  # float32 numbers in a vector of AVX-512: narrower layers leave some of them idle


@dataclass(frozen=True)
class Problem:
    """Sizes of the data and of the predictor."""

    coils: int
    height: int
    width: int
    cascades: int
    chans: int
    sens_chans: int = 8
    pools: int = 4

    def __str__(self) -> str:
        return (
            f"{self.coils:2} x {self.height} x {self.width}, {self.cascades:2} x {self.chans} "
            f"channels, maps {self.sens_chans}"
        )

    def predictor(self) -> Predictor:
        """The network."""
        return Predictor(
            cascades=self.cascades,
            chans=self.chans,
            pools=self.pools,
            sens_chans=self.sens_chans,
        )


@dataclass(frozen=True)
class Work:
    """What a step does: forward and backward of one slice."""

    flops: float  # of the 3x3 convolutions, two for a multiplication and an addition
    vector_flops: float  # the same with every layer's width rounded up to full vectors
    layer_values: float  # numbers read and written in convolutions, norms, activations
    coil_values: float  # complex numbers read and written between U-Nets
    transformed: float  # complex numbers that go through a Fourier transform

    def traffic(self, bytes_per_number: float) -> float:
        """Bytes read and written if no cache helped."""
        return bytes_per_number * self.layer_values + 8 * self.coil_values


def work_of(problem: Problem) -> Work:
    """Arithmetic and traffic of one step, batch 1."""
    pixels = _padded(problem.height) * _padded(problem.width)
    networks = [
        (problem.coils, problem.sens_chans),
        (problem.cascades, problem.chans),
    ]
    flops = vector_flops = values = 0.0
    for count, chans in networks:
        for share, w_in, w_out in convolutions(chans, problem.pools):
            here = count * pixels * share
            # Forward and the weight's gradient, as wide as the output; the input's gradient.
            flops += here * 18 * 3 * w_in * w_out
            vector_flops += here * 18 * (2 * w_in * _lanes(w_out) + w_out * _lanes(w_in))
            # Counted in model/fused_layers.py: passes over the layer's input and over its output.
            values += here * (10 * w_in + 21 * w_out)
    coil_pixels = problem.coils * problem.height * problem.width
    # expand and reduce of each cascade but one, maps, result: 2 T transforms, 5 T with gradients.
    transforms = 5 * problem.cascades
    return Work(
        flops=flops,
        vector_flops=vector_flops,
        layer_values=values,
        coil_values=8.0 * transforms * coil_pixels,
        transformed=float(transforms * coil_pixels),
    )


def convolutions(chans: int, pools: int) -> list[tuple[float, int, int]]:
    """Each 3x3 convolution of a U-Net: its share of the pixels, channels in and out."""
    widths = [chans * 2**level for level in range(pools)]
    layers: list[tuple[float, int, int]] = []

    def block(level: int, w_in: int, w_out: int) -> None:
        layers.extend((4.0**-level, w, w_out) for w in (w_in, w_out))

    for level, (w_in, w_out) in enumerate(zip([2, *widths[:-1]], widths, strict=True)):
        block(level, w_in, w_out)
    block(pools, widths[-1], widths[-1])
    for level in reversed(range(pools)):
        block(level, 2 * widths[level], widths[max(0, level - 1)])
    return layers


def memory_bytes(problem: Problem, itemsize: int, *, recompute: bool) -> float:
    """What a step needs beside the program: weights, optimiser, k-space, kept values.

    Args:
        problem: sizes.
        itemsize: bytes of a number in the U-Nets: 4, or 2 under bfloat16.
        recompute: nothing is kept of any network; one is made again at a time.
    """
    import torch

    predictor = problem.predictor()
    weights = 4 * sum(weight.numel() for weight in predictor.parameters())
    shape = (1, problem.coils, problem.height, problem.width)
    kept = predictor.kept_bytes(torch.empty(shape, device="meta"), itemsize)
    coil_images = 8 * problem.coils * problem.height * problem.width
    states = problem.cascades * 0.6 * coil_images  # two of a quarter of the columns, one image
    alive = max(2 * kept[0] / problem.coils, *kept[1:]) if recompute else sum(kept)
    return 4 * weights + 6 * coil_images + states + alive


def _padded(size: int) -> int:
    return size + -size % PAD_MULTIPLE


def _lanes(chans: int) -> int:
    return LANES * math.ceil(chans / LANES)
