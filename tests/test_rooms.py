"""Which room of banding_removal may import which: only those below it.

python -m tests.test_rooms          (how many imports each room has of each other)
"""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
# From the top down. `data` and `model` are links to the folders of that name.
ROOMS = (
    *("command_line", "training", "reader_study", "evaluation", "reconstruction", "pictures"),
    *("runs", "processes", "config", "losses", "metrics", "files", "errors", "model", "data"),
)
OUTSIDE = ("scripts", "benchmarks", "tests")


def imported_modules(source: str) -> Iterator[str]:
    """Dotted names of all that is imported anywhere in a file; members of modules with them."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str:
    """`banding_removal.runs.log` is in the room `runs`; outside, a top-level package is one."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] if first == "banding_removal" else first


def sources() -> Iterator[tuple[str, str]]:
    """The room and the content of every module."""
    for room in ROOMS:
        path = REPOSITORY / "banding_removal" / room
        files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
        yield from ((room, file.read_text()) for file in files)
    for folder in OUTSIDE:
        yield from ((folder, path.read_text()) for path in (REPOSITORY / folder).rglob("*.py"))


def room_imports() -> Counter[tuple[str, str]]:
    """How many modules of each room import something of each other; a name counts once a module."""
    counts: Counter[tuple[str, str]] = Counter()
    for room, source in sources():
        modules = {name.rpartition(".")[0] or name for name in imported_modules(source)}
        modules |= {name for name in imported_modules(source) if name.count(".") == 1}
        rooms = {module: room_of(module) for module in modules}
        counts.update(
            (room, to) for to in rooms.values() if to in (*ROOMS, *OUTSIDE) and to != room
        )
    return counts


def table() -> str:
    """The counts with the importing room on the left."""
    counts = room_imports()
    columns = [*ROOMS, *OUTSIDE]
    lines = [" " * 15 + " ".join(f"{name[:7]:>7}" for name in columns)]
    for room in columns:
        numbers = (counts[room, to] for to in columns)
        lines.append(f"{room:15}" + " ".join(f"{number or '.':>7}" for number in numbers))
    return "\n".join(lines)


def test_rooms_import_only_from_rooms_below_them() -> None:
    print(table())
    upwards = [
        f"{room} imports {to}"
        for room, to in room_imports()
        if room in ROOMS and (to in OUTSIDE or ROOMS.index(to) < ROOMS.index(room))
    ]
    assert not upwards


def test_every_module_is_in_a_room() -> None:
    package = REPOSITORY / "banding_removal"
    there = {p.stem for p in package.iterdir() if (p.is_dir() or p.suffix == ".py")}
    assert there - {"__init__", "__pycache__"} == {*ROOMS}


def test_benchmarks_and_tests_do_not_need_each_other() -> None:
    counts = room_imports()
    assert not counts["benchmarks", "tests"]
    assert not counts["benchmarks", "scripts"]
    assert not counts["tests", "benchmarks"]
    assert not counts["scripts", "tests"] and not counts["scripts", "benchmarks"]


def test_data_and_model_are_imported_by_their_installed_names() -> None:
    tops = {name.partition(".")[0] for _, source in sources() for name in imported_modules(source)}
    assert not tops & {"data", "model"}


if __name__ == "__main__":
    print(table())
