"""Undersampled slices as examples, and batches of them.

Most of masked k-space is zero. Examples and batches hold only the measured columns, which is less
to move between processes and to the device; there, `masked_kspace` fills in the zeros.
"""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from multiprocessing.connection import Listener
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

log = logging.getLogger(__name__)

PROBLEM = "problem"  # in what a worker sends, beside the fields: why there is no shared memory


@dataclass(frozen=True, kw_only=True)
class Example:
    """One undersampled slice; H is always readout, W the axis that was undersampled."""

    measured: Tensor  # complex64 (coil, H, n): the columns of k-space where `mask` is true
    mask: Tensor  # bool (1, 1, W)
    acs_lines: int
    target: Tensor | None  # float32 (1, h, w)
    data_range: float  # largest target value of the volume; NaN without target
    rotated: bool  # k-space and target were transposed before masking
    name: str
    slice_index: int

    @property
    def masked_kspace(self) -> Tensor:
        """complex64 (coil, H, W), zero where not measured."""
        return collate([self]).masked_kspace[0]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples of one size."""

    measured: Tensor  # complex64 (coil, H, N): measured columns of all examples, side by side
    columns: Tensor  # int64 (N,): where each belongs; column y of example i is i W + y
    mask: Tensor  # bool (B, 1, 1, W)
    acs_lines: Tensor  # int64 (B,)
    target: Tensor | None  # float32 (B, 1, h, w)
    data_range: Tensor  # float32 (B,)
    rotated: Tensor  # float32 (B,), 1 where transposed: the adversary's label
    # On the CPU, so that nobody waits for a GPU to know them.
    counts: tuple[int, ...]  # measured columns of each example
    transposed: tuple[bool, ...]
    names: tuple[str, ...]
    slices: tuple[int, ...]

    @property
    def measured_columns(self) -> tuple[Tensor, ...]:
        """Positions of the measured columns of each example, int64 (n_b,), ascending."""
        width = self.mask.shape[-1]
        parts = self.columns.split(self.counts)
        return tuple(part - number * width for number, part in enumerate(parts))

    @cached_property
    def masked_kspace(self) -> Tensor:
        """complex64 (B, coil, H, W), zero where not measured; computed on first access."""
        coils, height, _ = self.measured.shape
        batch, _, _, width = self.mask.shape
        side_by_side = self.measured.new_zeros(coils, height, batch * width)
        side_by_side.index_copy_(-1, self.columns, self.measured)
        return side_by_side.view(coils, height, batch, width).movedim(2, 0).contiguous()

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; the data loader calls this."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Any) -> "Batch":
        tensors = {k: function(v) for k, v in self._fields().items() if isinstance(v, Tensor)}
        return replace(self, **tensors)

    def _fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __getstate__(self) -> dict[str, Any]:
        # A worker process sends each tensor through shared memory, which takes a third of a
        # millisecond however small it is; arrays travel inside the message.
        in_worker = get_worker_info() is not None
        problem = _share(self.measured) if in_worker else None
        through_memory = {"measured"} if in_worker and problem is None else set()
        state = {
            key: value.numpy() if isinstance(value, Tensor) and key not in through_memory else value
            for key, value in self._fields().items()
        }
        return state | {PROBLEM: problem}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            if key != PROBLEM:
                array = isinstance(value, np.ndarray)
                vars(self)[key] = torch.from_numpy(value) if array else value
        if state[PROBLEM] is not None:
            _warn_of_shared_memory(state[PROBLEM])

    def describe(self) -> str:
        """Where the examples come from, for messages."""
        return ", ".join(
            f"{name} slice {index}{' (transposed)' if rotated else ''}"
            for name, index, rotated in zip(self.names, self.slices, self.transposed, strict=True)
        )


def _share(tensor: Tensor) -> str | None:
    """Move a tensor to shared memory; returns why that failed, or None."""
    try:
        if torch.multiprocessing.get_sharing_strategy() == "file_descriptor":
            _check_sockets()
        tensor.share_memory_()
    except OSError as error:
        return f"TMPDIR={tempfile.tempdir}: {error}"
    except RuntimeError as error:  # torch's only kind, here from shm_open or fallocate
        # without the name of the file, which differs from one process to the next
        return str(error).splitlines()[0].rpartition(": ")[2]
    return None


@cache
def _check_sockets() -> None:
    """Check that a socket can be opened among the temporary files.

    A worker hands over shared memory through one. If it cannot open that, its batch is lost, and
    the trainer waits for ever.

    Raises:
        OSError: the folder's path is too long (over about 70 characters), or there is none.
    """
    Listener(family="AF_UNIX").close()


@cache  # once in the process that gets the batches
def _warn_of_shared_memory(reason: str) -> None:
    log.warning(
        "shared memory is too small or cannot be used (%s): batches go through a pipe, which is "
        "slower. A container gets more with --shm-size=8g; TMPDIR may be at fault, too; workers=0 "
        "needs none",
        reason,
    )


def collate(examples: Sequence[Example]) -> Batch:
    """Batch examples of one size.

    Raises:
        ValueError: sizes differ, or only some have a target; the files are named.
    """
    shapes = {
        (_kspace_shape(e), None if e.target is None else tuple(e.target.shape)) for e in examples
    }
    if len(shapes) > 1:
        files = ", ".join(
            f"{e.name}: k-space {_kspace_shape(e)}, "
            f"{'no target' if e.target is None else f'target {tuple(e.target.shape)}'}"
            for e in examples
        )
        raise ValueError(f"a batch needs examples of one size, got {files}")
    targets = [e.target for e in examples if e.target is not None]
    measured = [e.measured for e in examples]
    mask = torch.stack([e.mask for e in examples])
    return Batch(
        # a single example is not copied
        measured=measured[0] if len(measured) == 1 else torch.cat(measured, dim=-1),
        columns=mask.flatten().nonzero().flatten(),
        mask=mask,
        acs_lines=torch.tensor([e.acs_lines for e in examples]),
        target=torch.stack(targets) if targets else None,
        data_range=torch.tensor([e.data_range for e in examples]),
        rotated=torch.tensor([float(e.rotated) for e in examples]),
        counts=tuple(e.measured.shape[-1] for e in examples),
        transposed=tuple(e.rotated for e in examples),
        names=tuple(e.name for e in examples),
        slices=tuple(e.slice_index for e in examples),
    )


def joined(batches: Sequence[Batch]) -> list[Batch]:
    """Batches of one size as a single batch, in order; batches of different sizes as they are."""
    first = batches[0]

    def sizes(batch: Batch) -> tuple[Any, ...]:
        target = None if batch.target is None else batch.target.shape[1:]
        return (*batch.measured.shape[:-1], batch.mask.shape[-1], target)

    if len(batches) == 1 or any(sizes(batch) != sizes(first) for batch in batches):
        return list(batches)
    width, columns, before = first.mask.shape[-1], [], 0
    for batch in batches:
        columns.append(batch.columns + before * width)
        before += len(batch.names)
    targets = [batch.target for batch in batches if batch.target is not None]
    return [
        Batch(
            measured=torch.cat([batch.measured for batch in batches], dim=-1),
            columns=torch.cat(columns),
            mask=torch.cat([batch.mask for batch in batches]),
            acs_lines=torch.cat([batch.acs_lines for batch in batches]),
            target=torch.cat(targets) if targets else None,
            data_range=torch.cat([batch.data_range for batch in batches]),
            rotated=torch.cat([batch.rotated for batch in batches]),
            counts=sum((batch.counts for batch in batches), ()),
            transposed=sum((batch.transposed for batch in batches), ()),
            names=sum((batch.names for batch in batches), ()),
            slices=sum((batch.slices for batch in batches), ()),
        )
    ]


def _kspace_shape(example: Example) -> tuple[int, ...]:
    return (*example.measured.shape[:-1], example.mask.shape[-1])
