"""What a pretraining step costs on paper, against what it costs here, and what follows for GPUs.

    python -m benchmarks.scaling

Steps of several sizes are timed on this machine's CPU; a model of three rates (convolutions,
passes over layers, transforms and coils) is fitted to all of them but one, which it then predicts.
For GPUs nothing is measured: their times are roofline estimates from data sheets, assuming that a
third of the stated arithmetic and half of the stated bandwidth are reached.
"""

import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls

from banding_removal.model.sensitivity import center_columns
from benchmarks.cost_model import Problem, Work, memory_bytes, work_of

PAPER = Problem(coils=15, height=640, width=368, cascades=12, chans=18)
MEASURED = [
    Problem(coils=8, height=128, width=128, cascades=4, chans=8, sens_chans=4, pools=2),
    Problem(coils=8, height=320, width=320, cascades=4, chans=18),
    Problem(coils=15, height=320, width=320, cascades=2, chans=32),
    Problem(coils=4, height=640, width=368, cascades=2, chans=18),
    Problem(coils=15, height=640, width=320, cascades=3, chans=12),
    Problem(coils=20, height=384, width=256, cascades=6, chans=18),
    Problem(coils=15, height=640, width=368, cascades=6, chans=18),
    PAPER,
]
REPEATS = 3
SLICES = 34_742  # of the fastMRI knee training set (Zbontar et al., 2018)


@dataclass(frozen=True)
class Gpu:
    """A GPU as its maker describes it."""

    name: str
    float32: float  # FLOP/s
    bfloat16: float | None
    bandwidth: float  # bytes/s of its memory
    link: float  # bytes/s between GPUs of a machine, one direction


GPUS = [
    Gpu("V100 16 GB", 15.7e12, None, 0.9e12, 150e9),
    Gpu("A100 40 GB", 19.5e12, 312e12, 1.55e12, 300e9),
    Gpu("H100 80 GB", 67e12, 989e12, 3.35e12, 450e9),
]
NETWORK = 12.5e9  # bytes/s between machines: 100 Gb/s
ARITHMETIC, BANDWIDTH = 1 / 3, 1 / 2  # assumed shares of the data sheets' numbers


def step_seconds(problem: Problem) -> float:
    """Median time of forward and backward, as training does them, on the CPU."""
    torch.manual_seed(0)
    predictor = problem.predictor()
    acs_lines = torch.tensor([16])
    mask = center_columns(acs_lines, problem.width)
    mask[..., 1::4] = True
    shape = (1, problem.coils, problem.height, problem.width)
    kspace = torch.randn(shape, dtype=torch.complex64) * mask
    times = []
    for _ in range(REPEATS + 1):
        predictor.zero_grad(set_to_none=True)
        begun = time.perf_counter()
        predictor(kspace, mask, acs_lines).sum().backward()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def fitted(works: list[Work], seconds: list[float]) -> np.ndarray:
    """Seconds per vector FLOP, layer value and transformed value, by relative least squares."""
    return nnls(_terms(works) / np.array(seconds)[:, None], np.ones(len(seconds)))[0]


def predicted(works: list[Work], rates: np.ndarray) -> np.ndarray:
    """Seconds of steps."""
    return _terms(works) @ rates


def _terms(works: list[Work]) -> np.ndarray:
    return np.array([[w.vector_flops, w.layer_values, w.transformed] for w in works])


def gpu_seconds(gpu: Gpu, work: Work, *, bfloat16: bool) -> float:
    """Roofline estimate of a step: the longer of arithmetic and memory traffic."""
    peak = gpu.bfloat16 if bfloat16 and gpu.bfloat16 else gpu.float32
    # Under bfloat16 what lies between layers has 2 bytes, what norms work on has 4.
    traffic = work.traffic(3 if bfloat16 and gpu.bfloat16 else 4)
    return max(
        work.flops / (peak * ARITHMETIC),
        traffic / (gpu.bandwidth * BANDWIDTH),
    )


def main() -> None:
    """Print the tables."""
    works = [work_of(problem) for problem in MEASURED]
    seconds = []
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; measured: median of 3")
    print(f"{'coils x H x W, cascades':44}{'GFLOP':>8}{'GB':>7}{'s':>8}{'predicted':>11}")
    for problem in MEASURED:
        seconds.append(step_seconds(problem))
    for i, (problem, work) in enumerate(zip(MEASURED, works, strict=True)):
        others = [j for j in range(len(works)) if j != i]
        rates = fitted([works[j] for j in others], [seconds[j] for j in others])
        guess = predicted([work], rates)[0]
        print(
            f"{problem!s:44}{work.flops / 1e9:8.0f}{work.traffic(4) / 1e9:7.0f}"
            f"{seconds[i]:8.2f}{guess:11.2f} ({guess / seconds[i] - 1:+.0%})"
        )

    work, weights = work_of(PAPER), sum(w.numel() for w in PAPER.predictor().parameters())
    print(f"\npaper's size: {work.flops / 1e12:.2f} TFLOP a step; memory of a step, predicted:")
    for name, itemsize in (("float32", 4), ("bfloat16", 2)):
        kept, again = (memory_bytes(PAPER, itemsize, recompute=r) / 1e9 for r in (False, True))
        print(f"  {name:9} {kept:.1f} GB, everything recomputed {again:.1f} GB")

    volume = 4 * weights
    print(f"\nall predicted: an epoch of {SLICES} slices; gradients {volume / 1e6:.0f} MB a step")
    print(f"{'':12}{'':10}{'s a step':>9}{'1 GPU':>9}{'4 GPUs':>9}{'8 GPUs':>9}{'4 x 8':>9}")
    for gpu in GPUS:
        for name in ("float32", "bfloat16") if gpu.bfloat16 else ("float32",):
            step = gpu_seconds(gpu, work, bfloat16=name == "bfloat16")
            hours = [
                SLICES / count * (step + 2 * (count - 1) / count * volume / link) / 3600
                for count, link in ((1, gpu.link), (4, gpu.link), (8, gpu.link), (32, NETWORK))
            ]
            cells = "".join(f"{hour:7.2f} h" for hour in hours)
            print(f"{gpu.name:12}{name:10}{step:9.3f}{cells}")


if __name__ == "__main__":
    main()
