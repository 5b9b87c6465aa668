"""Where the time of a step goes, by group of operators, from a trace of torch.profiler.

Each event's own time (without the events inside it) goes to the group of the outermost operator
around it that has one, so that what a convolution copies for itself counts as convolution.
Elementwise operators are grouped by what they work on: complex numbers are coil arithmetic, real
ones normalisation and activation, images of one channel the loss.
"""

import json
import math
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Event = dict[str, Any]

CONVOLUTION = "convolution"
FOURIER = "FFT and shifts"
COILS = "coil arithmetic"
NORMS = "norms, activations"
COPIES = "copies, padding"
RESIZING = "pooling, resizing"
LEARNING = "loss, optimiser"
OTHER = "other"
GROUPS = (CONVOLUTION, FOURIER, COILS, NORMS, COPIES, RESIZING, LEARNING, OTHER)

# The first that is found in a name counts; names without namespace and trailing underscore.
BY_NAME = {
    r"^Optimizer|^_foreach|^_fused|cross_entropy|l1_loss|log_sigmoid": LEARNING,
    r"convolution|^conv\d|_conv\d|Convolution": CONVOLUTION,
    r"fft|^roll$": FOURIER,
    r"(batch|instance|group)_norm|(Batch|Group)Norm|^relu|threshold|clamp": NORMS,
    r"pool\d|upsample|interpolate|Pool\d|Upsample": RESIZING,
    r"^(copy|clone|contiguous|cat|stack|pad|constant_pad_nd|to|_to_copy|repeat|fill|zero|zeros"
    r"|zeros_like|ones|ones_like|full|full_like|new_zeros|slice_backward|select_backward|complex"
    r"|index|index_put|reshape)$": COPIES,
}
ELEMENTWISE = re.compile(
    r"^(mul|add|sub|rsub|div|neg|reciprocal|sum|mean|var|std|var_mean|abs|sgn|sign|sqrt|rsqrt|pow"
    r"|square|where|masked_fill|conj_physical|addcmul|addcdiv|lerp|eq|ne|gt|lt|ge|le|maximum"
    r"|linalg_vector_norm|norm|bmm|einsum|polar|angle)$"
)


def group_of(name: str, dtypes: list[str], shapes: list[Any]) -> str | None:
    """The group of an operator or of a node of the backward; None: it says nothing by itself.

    Args:
        name: as the profiler has it, `aten::mul_`, `MulBackward0`, `Optimizer.step#Adam.step`.
        dtypes: of its arguments, `float` or `c10::complex<float>`.
        shapes: likewise, lists of sizes; of lists of tensors, lists of those.
    """
    if name.startswith("autograd::"):
        return None  # around the addition of gradients, too
    namespace, _, operator = name.rpartition("::")
    if not namespace and not re.search(r"Backward\d+$|^Optimizer", operator):
        return None  # a function of Python's, whose operators are inside
    operator = operator.removesuffix("_")
    tensors = [s for s in shapes if s and all(isinstance(size, int) for size in s)]
    of_loss = bool(tensors) and all(map(_is_image_or_few_numbers, tensors))
    for pattern, group in BY_NAME.items():
        if re.search(pattern, operator):
            windows = of_loss and group in (CONVOLUTION, RESIZING)  # of the SSIM
            return LEARNING if windows else group
    if not namespace or not ELEMENTWISE.search(operator):
        return None
    parts = any(len(s) == 5 and s[-1] == 2 for s in tensors)  # complex numbers seen as pairs
    if parts or any("complex" in dtype for dtype in dtypes):
        return COILS
    return LEARNING if of_loss or not tensors else NORMS


def _is_image_or_few_numbers(shape: list[int]) -> bool:
    if len(shape) == 4 and shape[1] == 1:
        # Group norm works on (B, 1, channel, pixels), too.
        return max(shape[2:]) <= 4 * min(shape[2:])
    return len(shape) < 3 and math.prod(shape) < 1000


def seconds_by_group(events: list[Event]) -> dict[str, float]:
    """Seconds of each group in a Chrome trace: of the GPU's kernels if there are any, else the CPU.

    A kernel belongs to the operator that launched it.
    """
    groups: dict[Any, str] = {}  # by "External id"
    own = dict.fromkeys(GROUPS, 0.0)
    threads = defaultdict(list)
    for event in events:
        if event.get("cat") in ("cpu_op", "user_annotation"):
            threads[event["tid"]].append(event)
    for thread in threads.values():
        around: list[tuple[float, str | None, str]] = []  # end, group from outside, that counts
        for event in sorted(thread, key=lambda e: (e["ts"], -e["dur"])):
            while around and event["ts"] >= around[-1][0]:
                around.pop()
            given = around[-1][1] if around else None
            arguments = event.get("args", {})
            group = given or group_of(
                event["name"], arguments.get("Input type", []), arguments.get("Input Dims", [])
            )
            if event["name"] == "aten::_to_copy":
                group = COPIES  # autocast's conversions are inside of what they are made for
            if around:
                own[around[-1][2]] -= event["dur"]
            own[group or OTHER] += event["dur"]
            around.append((event["ts"] + event["dur"], group, group or OTHER))
            groups[arguments.get("External id")] = group or OTHER
    kernels = _kernels(events)
    if kernels:
        own = dict.fromkeys(GROUPS, 0.0)
        for kernel in kernels:
            own[groups.get(kernel["args"].get("External id"), OTHER)] += kernel["dur"]
    return {group: value / 1e6 for group, value in own.items()}


def _kernels(events: list[Event]) -> list[Event]:
    return [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]


def profiled(step: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Seconds of each group in one step, on the GPU or in the CPU's operators.

    Raises:
        RuntimeError: no kernel of the GPU was recorded.
    """
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    # acc_events changes nothing here; without it, PyTorch 2.11 warns.
    with profile(activities=activities, record_shapes=True, acc_events=True) as recording:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        recording.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    if device.type == "cuda" and not _kernels(events):
        raise RuntimeError("the profiler recorded no kernel: it cannot trace this GPU")
    return seconds_by_group(events)
