"""Tables and plots of what benchmarks/efficacy.py found.

    python -m benchmarks.efficacy_report volumes=final 'recipes=[control,direct]' name=96

Writes <output>/<name>.json (all rows), <name>.md (tables) and <name>.png. Changes are against the
control of the same seed, which was trained for as many further steps with nothing against banding.
"""

import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure

from banding_removal.command_line import user_errors
from banding_removal.config.overrides import from_words
from banding_removal.config.settings import REPOSITORY
from banding_removal.errors import ConfigError
from banding_removal.files import atomic_write
from benchmarks.efficacy import BEFORE

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is reported."""

    folder: Path = REPOSITORY / "datasets" / "efficacy"
    size: str = "96"
    varied: bool = True  # the data of stage 2
    volumes: Literal["chosen", "final"] = "final"
    recipes: tuple[str, ...] = ()  # besides the control; none: all there are
    control: str = "control"  # the recipe that has as many steps, at the same rates
    output: Path = REPOSITORY / "docs" / "results"
    name: str = "96"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A run and its control."""

    run: Row
    control: Row

    def of(self, name: str) -> float:
        """A figure of the run; NaN where it has none."""
        return _figure(self.run, name)

    def change(self, name: str) -> float:
        """Of a figure, against the control."""
        return self.of(name) - _figure(self.control, name)

    def mean_change(self, name: str) -> float:
        """Likewise, the mean over phase encoding along x and y."""
        return (self.change(name) + self.change(f"{name}_y")) / 2


def _figure(row: Row, name: str) -> float:
    value = row["figures"].get(name)  # some are not in rows of earlier versions
    return float("nan") if value is None else value


@dataclass(frozen=True)
class Aim:
    """A figure of one seed, and where it is wanted."""

    of: Callable[[Pair], float]
    low: float = -math.inf
    high: float = math.inf

    def met(self, pair: Pair) -> bool:
        """Whether the figure is where it is wanted."""
        return self.low <= self.of(pair) <= self.high

    def __str__(self) -> str:
        if self.low == -self.high:
            return f"within {self.high:g}"
        if math.isinf(self.low):
            return f"<= {self.high:g}"
        return f">= {self.low:g}" if math.isinf(self.high) else f"{self.low:g} to {self.high:g}"


def _of(name: str) -> Callable[[Pair], float]:
    return lambda pair: pair.of(name)


def _change(name: str) -> Callable[[Pair], float]:
    return lambda pair: pair.change(name)


def _excess_cut(pair: Pair) -> float:
    name = "low_signal.signed_excess"
    return 100 * (1 - abs(pair.of(name)) / abs(_figure(pair.control, name)))


def _nmse(pair: Pair) -> float:
    before = _figure(pair.control, "nmse") + _figure(pair.control, "nmse_y")
    return 200 * pair.mean_change("nmse") / before


AIMS = {
    "B (dB)": Aim(_of("low_signal.contribution"), -0.5, 0.5),
    "excess cut (%)": Aim(_excess_cut, low=70),
    "along (dB)": Aim(_change("low_signal.along"), high=-1.5),
    "across (dB)": Aim(_change("low_signal.across"), -0.3, 0.3),
    "B background (dB)": Aim(_of("background.contribution"), -0.7, 0.7),
    "B anatomy (dB)": Aim(_of("anatomy.contribution"), -0.7, 0.7),
    "probe": Aim(_of("probe.balanced_accuracy"), high=0.9),
    "probe, low-signal view": Aim(_of("probe_low_signal.balanced_accuracy"), high=0.65),
    "SSIM": Aim(lambda pair: pair.mean_change("ssim"), low=-0.002),
    "NMSE (%)": Aim(_nmse, high=2),
    "ends: along (dB)": Aim(_change("ends.along"), high=0),
    "ends: across (dB)": Aim(_change("ends.across"), -0.3, 0.3),
    "step (times)": Aim(lambda pair: pair.run["step_ms"] / pair.control["step_ms"], high=2),
}


def read_rows(settings: Report) -> list[Row]:
    """All rows of a size and data on these volumes, the newest of each run.

    Raises:
        ConfigError: there are none.
    """
    newest: dict[tuple[int, str], Row] = {}
    for path in sorted((settings.folder / "rows").glob(f"{settings.size}-*.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            varied = row.get("varied", False)  # earlier rows do not say
            if row["volumes"] == settings.volumes and varied == settings.varied:
                newest[row["seed"], row["recipe"]] = row
    if not newest:
        raise ConfigError(f"{settings.folder} has no rows of size {settings.size}")
    wanted = {*settings.recipes, settings.control, BEFORE}
    return [row for row in newest.values() if not settings.recipes or row["recipe"] in wanted]


def pairs_of(rows: Sequence[Row], control: str) -> dict[str, list[Pair]]:
    """Each recipe's runs with their controls, by seed; those without a control are left out."""
    controls = {row["seed"]: row for row in rows if row["recipe"] == control}
    pairs: dict[str, list[Pair]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        if row["seed"] in controls and row["recipe"] != BEFORE:
            pair = Pair(run=row, control=controls[row["seed"]])
            pairs.setdefault(row["recipe"], []).append(pair)
    return pairs


def markdown(pairs: dict[str, list[Pair]]) -> str:
    """A table of all recipes, and one of each recipe's seeds."""
    heads = ["recipe", "seeds", *AIMS]
    lines = [_line(heads), _line(["---"] * len(heads))]
    lines.append(_line(["aim", "", *map(str, AIMS.values())]))
    for recipe, members in pairs.items():
        cells = [recipe, str(len(members))]
        for aim in AIMS.values():
            values = [aim.of(pair) for pair in members]
            if any(map(math.isnan, values)):
                cells.append("not measured")
                continue
            count = sum(map(aim.met, members))
            spread = f"{min(values):.3g} .. {max(values):.3g}"
            cells.append(f"{statistics.mean(values):.3g} ({spread}), {count}/{len(values)}")
        lines.append(_line(cells))
    parts = ["\n".join(lines)]
    for recipe, members in pairs.items():
        heads = ["seed", *AIMS]
        lines = [f"### {recipe}\n", _line(heads), _line(["---"] * len(heads))]
        for pair in members:
            figures = [f"{aim.of(pair):.3g}" for aim in AIMS.values()]
            lines.append(_line([str(pair.run["seed"]), *figures]))
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def write_plot(path: Path, pairs: dict[str, list[Pair]]) -> None:
    """A dot for each seed, a column for each recipe, a panel for each figure; green is the aim."""
    figure = Figure(figsize=(16, 8), layout="constrained")
    every = [pair for members in pairs.values() for pair in members]
    measured = {
        name: aim
        for name, aim in AIMS.items()
        if not all(math.isnan(aim.of(pair)) for pair in every)
    }
    for place, (name, aim) in enumerate(measured.items(), start=1):
        panel = figure.add_subplot(3, 5, place)
        for column, members in enumerate(pairs.values()):
            values = [aim.of(pair) for pair in members]
            panel.plot([column] * len(values), values, "o", alpha=0.5)
            panel.plot([column - 0.2, column + 0.2], [statistics.mean(values)] * 2, "k-")
        panel.set_title(f"{name}, aim {aim}", fontsize=9)
        panel.set_xticks(range(len(pairs)), list(pairs), rotation=30, fontsize=8)
        panel.margins(x=0.1)
        panel.grid(axis="y", alpha=0.3)
        bottom, top = panel.get_ylim()
        panel.axhspan(max(aim.low, bottom), min(aim.high, top), color="tab:green", alpha=0.1)
        panel.set_ylim(bottom, top)
    figure.savefig(path, dpi=100)


def main(words: list[str]) -> None:
    """Write all three files."""
    settings = from_words(Report(), words)
    rows = read_rows(settings)
    pairs = pairs_of(rows, settings.control)
    settings.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rows, indent=1) + "\n"
    atomic_write(settings.output / f"{settings.name}.json", text.encode())
    table = markdown(pairs)
    atomic_write(settings.output / f"{settings.name}.md", table.encode())
    write_plot(settings.output / f"{settings.name}.png", pairs)
    print(table)


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
