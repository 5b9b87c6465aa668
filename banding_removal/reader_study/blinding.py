"""The random order and arrangement in which each reader sees the images.

All random numbers come from the operating system: with a seed, anybody who has this program could
repeat the draws.
"""

import itertools
import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

TOKEN_BYTES = 8
_random = random.SystemRandom()


def new_token() -> str:
    """A random name, which reveals nothing."""
    return secrets.token_hex(TOKEN_BYTES)


@dataclass(frozen=True, kw_only=True)
class View:
    """A case as one reader sees it."""

    id: str  # in the page and in the ratings
    case: int  # position in the list of cases
    sets: tuple[int, ...]  # the set at each position, from left to right
    repeat: bool  # the reader has seen the case before


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A reader's page."""

    name: str
    token: str
    views: tuple[View, ...]  # in the order in which they are shown


def arrange(cases: int, sets: int, repeats: int, name: str) -> Reader:
    """A random order of all cases; every arrangement of the sets equally often, up to one.

    Repeated cases are drawn from the first half and come again in the second half, with the sets in
    another order.

    Args:
        cases: number of cases.
        sets: number of sets, at least 2.
        repeats: how many cases are shown twice, at most half of them.
        name: of the reader.
    """
    arrangements = list(itertools.permutations(range(sets)))
    times, rest = divmod(cases, len(arrangements))
    wanted = arrangements * times + _random.sample(arrangements, rest)
    _random.shuffle(wanted)
    order = _random.sample(range(cases), cases)
    first = [
        View(id=new_token(), case=case, sets=wanted[i], repeat=False)
        for i, case in enumerate(order)
    ]
    half = (cases + 1) // 2
    again = [
        View(
            id=new_token(),
            case=view.case,
            sets=_random.choice([other for other in arrangements if other != view.sets]),
            repeat=True,
        )
        for view in _random.sample(first[:half], repeats)
    ]
    return Reader(name=name, token=new_token(), views=(*first[:half], *_mixed(first[half:], again)))


def _mixed(first: Sequence[View], again: Sequence[View]) -> list[View]:
    """Both, with the repeated ones at random places among the others, which keep their order."""
    places = set(_random.sample(range(len(first) + len(again)), len(again)))
    ones, others = iter(again), iter(first)
    return [next(ones if i in places else others) for i in range(len(first) + len(again))]
