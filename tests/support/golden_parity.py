"""Comparison of this project with the golden numbers: of each part, the quantity furthest off.

    python -m tests.support.golden_parity

How errors and tolerances are defined: `tests.support.parity.compare`.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch

from tests.support.parity.adversary import (
    PUBLISHED,
    adversarial_loss_parity,
    adversaries_parity,
    ensemble_parity,
)
from tests.support.parity.compare import Parity, worst
from tests.support.parity.data import masks_parity, ops_parity, orientation_parity
from tests.support.parity.predictor import (
    ODD_SIZES,
    PATHS,
    padding_parity,
    parameter_parity,
    plain_parity,
    predictor_parity,
)
from tests.support.parity.training import loss_parity, lr_parity, quality_parity
from tests.support.parity.varnet import CASES, varnet_parity
from tests.support.parity.weights import PREDICTORS

COMPARISONS: dict[str, Callable[[], Iterator[Parity]]] = {
    "masks": masks_parity,
    "operators": ops_parity,
    "examples": orientation_parity,
    "loss": loss_parity,
    "image quality": quality_parity,
    "learning rates": lr_parity,
    "parameter counts": parameter_parity,
    "padding": padding_parity,
    **{
        f"{name}, {dtype}, {path}": partial(predictor_parity, name, dtype, path)
        for name in PREDICTORS
        for dtype in ("float64", "float32")
        for path in PATHS
    },
    **{f"plain predictor, {h} x {w}": partial(plain_parity, (h, w)) for h, w in ODD_SIZES},
    **{name: partial(adversaries_parity, name) for name in PUBLISHED},
    "ensemble": ensemble_parity,
    **{
        f"adversarial loss, {members} member(s){', one pass' if one_pass else ''}": partial(
            adversarial_loss_parity, members, one_pass=one_pass
        )
        for members in (1, 2)
        for one_pass in (False, True)
    },
    **{
        f"varnet, {case}, {dtype}": partial(varnet_parity, case, dtype)
        for case in CASES
        for dtype in ("float64", "float32")
    },
}


def main() -> None:
    """Print a line for each comparison and for each quantity too far off; exit with 1 if any is."""
    torch.set_num_threads(1)  # as in the tests: rounding differs with the number of threads
    print(f"{'comparison':50} {'quantities':>10} {'error':>8}  allowed   of")
    failed = 0
    for name, compare in COMPARISONS.items():
        rows = list(compare())
        failed += sum(row.too_far for row in rows)
        furthest = worst(rows)
        for row in [row for row in rows if row.too_far] or [furthest]:
            mark = "TOO FAR  " if row.too_far else ""
            print(
                f"{name:50} {len(rows):10} {row.error:8.2g}  {row.tolerance:7.1e}   "
                f"{mark}{row.quantity}"
            )
    print(f"{failed} too far" if failed else "all within what is allowed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
