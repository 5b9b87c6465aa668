"""How a result is compared with a golden number: error and tolerance.

Errors are relative in the 2-norm, |ours - golden| / |golden|, against the golden float64 value
where there is one. The published float32 code is itself up to 1.6e-4 away from its own float64
numbers (the sensitivity net divides by the RSS, which amplifies rounding), so that in float32 twice
its distance is allowed where that is more than 5e-5.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[2] / "golden"
FLOAT64_TOLERANCE = 1e-9
FLOAT32_TOLERANCE = 5e-5


@dataclass(frozen=True, kw_only=True)
class Parity:
    """One compared quantity."""

    file: str
    quantity: str
    error: float
    tolerance: float

    @property
    def too_far(self) -> bool:
        """Whether the error is larger than allowed; a NaN is."""
        return not self.error <= self.tolerance

    @property
    def _rank(self) -> float:
        """Error over tolerance; a NaN ranks as infinite."""
        if self.error == 0:
            return 0.0
        if math.isnan(self.error) or self.tolerance == 0:
            return math.inf
        return self.error / self.tolerance


def worst(rows: Iterable[Parity]) -> Parity:
    """The row that is furthest off, in units of its tolerance; a NaN is further than anything."""
    return max(rows, key=lambda row: row._rank)


def load(name: str) -> dict[str, np.ndarray]:
    """The arrays of a golden file."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return dict(arrays)


def load_json(name: str) -> Any:
    """The facts of a golden file."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def complex_tensor(array: np.ndarray, dtype: str) -> Tensor:
    """Trailing (real, imaginary) to complex."""
    return torch.view_as_complex(torch.tensor(array.astype(dtype)))


def _as_array(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach()
        value = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
        value = value.numpy()
    return np.asarray(value, dtype=np.float64)


def distance(ours: Any, golden: Any) -> float:
    """|ours - golden| in the 2-norm; complex tensors have a trailing (real, imaginary).

    Raises:
        ValueError: the shapes differ; nothing is broadcast.
    """
    ours, golden = _as_array(ours), _as_array(golden)
    if ours.shape != golden.shape:
        raise ValueError(f"shape {ours.shape} instead of the golden {golden.shape}")
    return norm(ours - golden)


def norm(value: Any) -> float:
    """|value| in the 2-norm, of a tensor, an array or a number."""
    return float(np.linalg.norm(_as_array(value).ravel()))


def relative_error(ours: Any, golden: Any) -> float:
    """|ours - golden| / |golden| in the 2-norm; 0 / 0 is 0.

    Raises:
        ValueError: the shapes differ.
    """
    off, size = distance(ours, golden), norm(golden)
    if off == 0:
        return 0.0
    return off / size if size else math.inf


def tolerance(dtype: str) -> float:
    """Largest error allowed in a precision."""
    return FLOAT64_TOLERANCE if dtype == "float64" else FLOAT32_TOLERANCE


def row(
    file: str, quantity: str, dtype: str, ours: Any, golden: Any, published: Any = None
) -> Parity:
    """Compare a result.

    Args:
        file: golden file.
        quantity: what is compared.
        dtype: precision of the result, float32 or float64.
        ours: the result.
        golden: what it should be, as exact as it is known.
        published: the published code's result in the same precision.
    """
    allowed = tolerance(dtype)
    if published is not None and dtype == "float32":
        allowed = max(allowed, 2 * relative_error(published, golden))
    error = relative_error(ours, golden)
    return Parity(file=file, quantity=f"{quantity}, {dtype}", error=error, tolerance=allowed)


def exact_row(file: str, quantity: str, differences: float) -> Parity:
    """A count or distance that must be 0."""
    return Parity(file=file, quantity=quantity, error=float(differences), tolerance=0.0)
