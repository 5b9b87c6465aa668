from collections.abc import Callable, Iterator

import pytest

from banding_removal.model.classifiers import Architecture
from tests.support import golden_parity
from tests.support.golden_parity import PREDICTORS, Parity


def check(rows: list[Parity]) -> None:
    assert rows
    too_far = [row for row in rows if not row.error <= row.tolerance]
    assert not too_far


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", PREDICTORS)
def test_predictor_loss_and_gradients_equal_the_golden_ones(name: str, dtype: str) -> None:
    check(list(golden_parity.predictor_parity(name, dtype)))


@pytest.mark.parametrize(
    "compare",
    [
        golden_parity.masks_parity,
        golden_parity.ops_parity,
        golden_parity.metrics_parity,
        golden_parity.orientation_parity,
        golden_parity.lr_parity,
        golden_parity.parameter_parity,
        golden_parity.adversarial_loss_parity,
    ],
)
def test_parts_equal_the_golden_numbers(compare: Callable[[], Iterator[Parity]]) -> None:
    check(list(compare()))


@pytest.mark.parametrize("architecture", golden_parity.PUBLISHED)
def test_adversaries_equal_the_golden_ones(architecture: Architecture) -> None:
    check(list(golden_parity.adversaries_parity(architecture)))
