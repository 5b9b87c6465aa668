"""Bounds of a setting, written beside its default and checked in one loop."""

import dataclasses
import math
import operator
from typing import Any, TypeVar

from banding_removal.errors import ConfigError

T = TypeVar("T")

_TESTS = {
    "above": ("above", operator.gt),
    "at_least": ("at least", operator.ge),
    "below": ("below", operator.lt),
    "at_most": ("at most", operator.le),
    "multiple_of": ("a multiple of", lambda value, divisor: value % divisor == 0),
}


def bounded(
    default: T,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    multiple_of: int | None = None,
) -> T:
    """A dataclass field whose value `check_bounds` holds to all the bounds given.

    A tuple is held to them item by item. None, where the field's type allows it, is always valid.
    """
    given = {
        "above": above,
        "at_least": at_least,
        "below": below,
        "at_most": at_most,
        "multiple_of": multiple_of,
    }
    bounds = {name: limit for name, limit in given.items() if limit is not None}
    return dataclasses.field(default=default, metadata={"bounds": bounds})


def check_bounds(settings: Any) -> None:
    """Compare every field made by `bounded` with its bounds; call it in `__post_init__`.

    Raises:
        ConfigError: a value is out of bounds, infinite or NaN.
    """
    for field in dataclasses.fields(settings):
        bounds: dict[str, float] = field.metadata.get("bounds", {})
        value = getattr(settings, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if not bounds or number is None:
                continue
            if not math.isfinite(number):
                raise ConfigError(f"{field.name} must be finite, got {value}")
            if not all(_TESTS[name][1](number, limit) for name, limit in bounds.items()):
                words = " and ".join(f"{_TESTS[name][0]} {n}" for name, n in bounds.items())
                raise ConfigError(f"{field.name} must be {words}, got {value}")
