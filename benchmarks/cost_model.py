"""Predicted cost of a pretraining step from the sizes alone: arithmetic, traffic and memory."""

import math
from dataclasses import dataclass

from banding_removal.model.predictor import Predictor
from banding_removal.model.unet import PAD_MULTIPLE

LANES = 16  # float32 numbers in an AVX-512 vector; narrower layers leave some of them idle
AROUND = 6  # float32 numbers per pixel that a complex U-Net keeps outside of its blocks


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
    """The work of a training step: forward and backward pass of one slice."""

    flops: float  # of the 3x3 convolutions; a multiplication and an addition are two
    vector_flops: float  # the same with every layer's width rounded up to full vectors
    layer_values: float  # numbers read and written in convolutions, norms, activations
    coil_values: float  # complex numbers read and written between U-Nets
    transformed: float  # complex numbers that are Fourier transformed

    def traffic(self, bytes_per_number: float) -> float:
        """Bytes read and written without any help from caches."""
        return bytes_per_number * self.layer_values + 8 * self.coil_values


def work_of(problem: Problem) -> Work:
    """Arithmetic and memory traffic of one step with batch size 1."""
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
            # Passes over a layer's input and over its output, counted in model/fused_layers.py.
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
    """For each 3x3 convolution of a U-Net: share of the pixels, channels in, channels out."""
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


def kept_bytes(problem: Problem, chans: int, itemsize: int) -> float:
    """Bytes that a complex U-Net of this width keeps of one image for the backward pass.

    In each block that is the output of each norm (`model/fused_layers.py`).
    """
    pixels = _padded(problem.height) * _padded(problem.width)
    values = 2 + sum(share * w_out for share, _, w_out in convolutions(chans, problem.pools))
    return pixels * (itemsize * values + 4 * AROUND)


def memory_bytes(problem: Problem, itemsize: int, *, recompute: bool) -> float:
    """Memory of a step in addition to the program: weights, optimiser, k-space, kept values.

    Args:
        problem: sizes.
        itemsize: bytes of a number in the U-Nets: 4, or 2 with bfloat16.
        recompute: no network keeps anything; they are recomputed one after the other.
    """
    weights = 4 * sum(weight.numel() for weight in problem.predictor().parameters())
    coil_images = 8 * problem.coils * problem.height * problem.width
    states = problem.cascades * 0.6 * coil_images  # two of a quarter of the columns, one image
    of_a_coil = kept_bytes(problem, problem.sens_chans, itemsize)
    of_a_cascade = kept_bytes(problem, problem.chans, itemsize)
    if recompute:
        kept = max(2 * of_a_coil, of_a_cascade)
    else:
        kept = problem.coils * of_a_coil + problem.cascades * of_a_cascade
    return 4 * weights + 6 * coil_images + states + kept


def _padded(size: int) -> int:
    return size + -size % PAD_MULTIPLE


def _lanes(chans: int) -> int:
    return LANES * math.ceil(chans / LANES)
