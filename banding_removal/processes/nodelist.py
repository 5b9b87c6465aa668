"""Slurm's lists of nodes."""

import re


def hostnames(nodes: str) -> list[str]:
    """The hosts of a Slurm node list such as `node[03-05,9],gpu1`, in its order."""
    hosts: list[str] = []
    for pattern in re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", nodes):
        expanded = [""]
        for plain, numbers in re.findall(r"([^\[\]]+)|\[([^\]]*)\]", pattern):
            parts = [plain] if plain else _numbers(numbers)
            expanded = [host + part for host in expanded for part in parts]
        hosts += expanded
    return hosts


def _numbers(ranges: str) -> list[str]:
    """`03-05,9` is 03, 04, 05, 9."""
    numbers = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()):
            numbers.append(part)  # not a range
            continue
        width = len(first)
        numbers += [f"{i:0{width}d}" for i in range(int(first), int(last or first) + 1)]
    return numbers
