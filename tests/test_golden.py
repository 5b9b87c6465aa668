import math

import numpy as np
import pytest
import torch

from tests.support.golden_parity import COMPARISONS
from tests.support.parity.compare import Parity, distance, relative_error, row, worst


@pytest.mark.parametrize("name", COMPARISONS)
def test_results_equal_the_golden_ones(name: str) -> None:
    rows = list(COMPARISONS[name]())
    assert rows
    assert not [row for row in rows if row.too_far]


def parity(error: float, tolerance: float = 1.0) -> Parity:
    return Parity(file="", quantity="", error=error, tolerance=tolerance)


def test_a_nan_is_too_far() -> None:
    assert parity(math.nan).too_far
    assert math.isnan(relative_error([1.0, math.nan], [1.0, 2.0]))
    assert math.isnan(relative_error([1.0, 2.0], [1.0, math.nan]))
    assert row("", "", "float32", math.nan, 1.0, 1.0).too_far
    assert row("", "", "float32", 1.0, 1.0, math.nan).tolerance < 1e-4


@pytest.mark.parametrize("errors", [(math.nan, 0.5), (0.5, math.nan), (0.0, math.nan, math.inf)])
def test_a_nan_is_the_worst_wherever_it_stands(errors: tuple[float, ...]) -> None:
    assert worst(parity(error) for error in errors).too_far


def test_the_worst_is_so_in_units_of_its_tolerance() -> None:
    assert worst([parity(1e-3, 1e-2), parity(1e-8, 1e-9)]).error == 1e-8
    assert worst([parity(0.0, 0.0), parity(0.5)]).error == 0.5
    assert worst([parity(1.0, 0.0), parity(5.0)]).error == 1.0


@pytest.mark.parametrize("golden", [np.ones(3), np.ones((1, 3)), np.ones((1, 1))])
def test_shapes_are_not_broadcast(golden: np.ndarray) -> None:
    with pytest.raises(ValueError, match="shape"):
        distance(torch.ones(1), golden)
    with pytest.raises(ValueError, match="shape"):
        relative_error(golden, torch.ones(1))


def test_a_complex_tensor_is_compared_as_two_real_numbers() -> None:
    assert distance(torch.tensor([3 + 4j]), np.array([[3.0, 1.0]])) == 3.0


def test_errors_are_relative_and_nothing_is_near_zero() -> None:
    assert relative_error([2.0, 0.0], [1.0, 0.0]) == 1.0
    assert relative_error([0.0], [0.0]) == 0.0
    assert relative_error([1e-30], [0.0]) == math.inf
