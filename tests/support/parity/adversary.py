"""The adversaries and the adversarial objective against the published ones."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from banding_removal.losses.orientation import OrientationObjective
from banding_removal.model.classifiers import Architecture, Ensemble
from tests.support.parity.compare import Parity, exact_row, load, load_json, row, worst
from tests.support.parity.weights import (
    golden_adversary,
    published_adversary_name,
    published_adversary_order,
)

PUBLISHED = ("shallow", "wide", "prev", "simple", "resnet50", "unpooled_resnet50")
INPUTS = ("x", "x3_independent_channels")
DTYPES = ("float64", "float32")


def adversaries_parity(architecture: Architecture) -> Iterator[Parity]:
    """Parameter count, logit and input gradient."""
    golden = load("adversaries")
    adversary = golden_adversary(architecture)
    count = sum(weight.numel() for weight in adversary.parameters())
    difference = abs(count - load_json("param_counts")[architecture]["params"])
    yield exact_row("param_counts", f"{architecture}: {count} parameters", difference)
    for dtype in DTYPES:
        adversary = golden_adversary(architecture, dtype)
        rows: dict[str, list[Parity]] = {}
        for x in INPUTS:
            logit, gradient = _logit_and_gradient(adversary, golden[x], dtype)
            found = {"logit": logit, "gradx_norm": torch.linalg.vector_norm(gradient)}
            for quantity, value in found.items():
                key = f"{architecture}_{quantity}_{x}"
                exact, published = (golden[f"{key}_{d}"] for d in ("float64", dtype))
                compared = row("adversaries", key, dtype, value, exact, published)
                rows.setdefault(quantity, []).append(compared)
            key = f"{architecture}_gradx_{x}"
            if key in golden:  # kept in float32
                compared = row("adversaries", key, "float32", gradient, golden[key])
                rows.setdefault("gradx", []).append(compared)
        for compared_rows in rows.values():
            yield worst(compared_rows)


def ensemble_parity() -> Iterator[Parity]:
    """Two adversaries side by side: the logits of each, and the gradient of their sum."""
    golden = load("adversaries")
    names: tuple[Architecture, Architecture] = ("shallow", "simple")
    members = [golden_adversary(name).get_submodule("members.0") for name in names]
    for x in INPUTS:
        logits, gradient = _logit_and_gradient(Ensemble(members), golden[x], "float64")
        each = np.concatenate([golden[f"{name}_logit_{x}_float64"] for name in names], axis=1)
        yield row("adversaries", f"ensemble of {names}, logits, {x}", "float64", logits, each)
        total = golden[f"{names[0]}_gradx_{x}"] + golden[f"{names[1]}_gradx_{x}"]
        yield row("adversaries", f"  gradient of their sum, {x}", "float32", gradient, total)


def _logit_and_gradient(
    adversary: Ensemble, image: np.ndarray, dtype: str
) -> tuple[Tensor, Tensor]:
    x = torch.tensor(image.astype(dtype), requires_grad=True)
    logit = adversary(x)
    logit.sum().backward()
    assert x.grad is not None
    return logit, x.grad


def adversarial_loss_parity(members: int, *, one_pass: bool) -> Iterator[Parity]:
    """Both players' terms and gradients, in float64 and float32.

    The golden cases have one adversary. Of n equal ones the terms are those of one, and each one's
    gradient is the n-th part, if the penalty's weight is divided by n^2: its gradient is that of
    the sum of the logits, n times as large.

    Args:
        members: number n of adversaries.
        one_pass: one forward pass of the adversary gives both players' terms (`both_terms`);
            False: each term has its own.
    """
    golden = load("adv_loss")
    cases = load_json("adv_loss")
    worst_of: dict[str, list[Parity]] = {}
    for case in cases:
        (exact,) = (
            other
            for other in cases
            if other["dtype"] == "float64" and _setting(other) == _setting(case)
        )
        for quantity, compared in _case_rows(
            case, exact, golden, members, one_pass=one_pass
        ).items():
            worst_of.setdefault(f"{quantity}, {case['dtype']}", []).append(compared)
    assert len(worst_of) == 2 * 9
    yield from (worst(rows) for rows in worst_of.values())


def _setting(case: dict[str, Any]) -> tuple[Any, ...]:
    keys = ("adversary", "rotated", "adv_target_uncertain", "reg_param", "strength")
    return tuple(case[key] for key in keys)


def _case_rows(
    case: dict[str, Any],
    exact: dict[str, Any],
    golden: dict[str, np.ndarray],
    members: int,
    *,
    one_pass: bool,
) -> dict[str, Parity]:
    dtype = case["dtype"]
    adversary = golden_adversary(case["adversary"], dtype, members=members)
    objective = OrientationObjective(
        adversary,
        target="flipped" if case["adv_target_uncertain"] else "uncertain",
        reg_param=case["reg_param"] / members**2,
    )
    image = torch.tensor(golden["prediction"].astype(dtype), requires_grad=True)
    rotated = torch.tensor([float(case["rotated"])])
    if one_pass:
        term, losses = objective.both_terms(image, rotated, objective.reg_param)
    else:
        term = objective.predictor_term(image, rotated)
        losses = objective.adversary_loss(image, rotated)
    (case["strength"] * term).backward()
    losses.loss.backward()
    assert image.grad is not None

    def compare(quantity: str, ours: Any, key: str) -> Parity:
        return row("adv_loss", label(quantity), dtype, ours, exact[key], case[key])

    def label(quantity: str) -> str:
        return quantity + (f", {members} members" if members > 1 else "")

    found = {
        "predictor's term": (term, "pred_orien"),
        "adversary's term": (losses.classification, "adv_orien"),
        "penalty": (losses.penalty, "reg"),
        "accuracy": (losses.accuracy, "accu_orien"),
        "mean logit": (losses.bias, "adv_bias"),
        "sum": (case["strength"] * term + losses.loss, "train_loss"),
        "norm of the image's gradient": (
            torch.linalg.vector_norm(image.grad),
            "grad_prediction_norm",
        ),
    }
    rows = {quantity: compare(quantity, *values) for quantity, values in found.items()}
    # kept in float32
    rows["gradient of the image"] = row(
        "adv_loss",
        label("gradient of the image"),
        "float32",
        image.grad,
        golden[f"{exact['key']}_dpred"],
        golden[f"{case['key']}_dpred"],
    )
    rows["gradient norm"] = _worst_gradient_norm(
        adversary, label("gradient norm"), dtype, members, *(
            golden[f"{c['key']}_adv_grad_norms"] for c in (exact, case)
        )
    )  # fmt: skip
    return rows


def _worst_gradient_norm(
    adversary: Ensemble,
    quantity: str,
    dtype: str,
    members: int,
    exact: np.ndarray,
    published: np.ndarray,
) -> Parity:
    """Of each member's parameters, by name."""
    norms: dict[str, list[Tensor]] = {}
    for name, weight in adversary.named_parameters():
        assert weight.grad is not None, f"{name} has no gradient"
        of_one = torch.linalg.vector_norm(weight.grad) * members
        norms.setdefault(published_adversary_name(name), []).append(of_one)
    return worst(
        row("adv_loss", f"{quantity}: {name}", dtype, ours, exact_norm, published_norm)
        for name, exact_norm, published_norm in zip(
            published_adversary_order(list(norms)), exact, published, strict=True
        )
        for ours in norms[name]
    )
