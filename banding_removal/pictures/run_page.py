"""The run page: `index.html` in a run's folder, and the same page of several runs side by side.

One file that opens from a disk, without network: slices by epoch in 16 bits (`kept_slices`), curves
(metrics.jsonl), events and log (log.txt), settings. All that draws is in `web/`.
"""

import base64
import html
import json
import logging
import math
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from banding_removal.config.overrides import plain
from banding_removal.config.settings import REPOSITORY, Settings
from banding_removal.errors import ConfigError
from banding_removal.files import atomic_write
from banding_removal.metrics import low_signal, low_signal_view
from banding_removal.pictures.curves import ADVERSARY_PANELS, PANELS
from banding_removal.pictures.kept_slices import STEPS, Images, keep_slices, read_slices
from banding_removal.pictures.validation_grid import ValidatedSlice
from banding_removal.runs.checkpoint import find_checkpoint, load_checkpoint
from banding_removal.runs.log import METRICS, ending_of, read_records, read_rows
from banding_removal.runs.status import is_locked

log = logging.getLogger(__name__)

NAME = "index.html"
MOST_ROWS = 10_000  # of metrics.jsonl; of more training rows, only a part is read
MOST_EVENTS = 200
LOG_TAIL = 60  # records
SCRIPTS = ("uPlot.iife.min.js", "images.js", "texture.js", "viewer.js", "input.js", "curves.js")
STYLES = ("uPlot.min.css", "page.css")
_EPOCH = re.compile(r"(?:resumed after )?epoch (\d+)[/,]")
# Names in the history, by which panels are defined, of metrics in training rows.
_OF_TRAINING = {"loss": "train_loss", "ssim": "train_ssim"}


@dataclass(frozen=True, kw_only=True)
class PageSettings:
    """Settings of scripts/page.py."""

    runs: tuple[Path, ...] = (REPOSITORY / "logs" / "run",)  # folders of runs
    output: Path | None = None  # null: index.html of a single run, otherwise logs/page.html

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("name one run or more: 'runs=[logs/pretrain,logs/train]'")


class PageWriter:
    """Keeps the page of a run that is being trained.

    A page that cannot be written never ends the run: it is logged, once until it works again.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = plain(settings)
        self._failed = False

    def add_epoch(self, epoch: int, slices: Sequence[ValidatedSlice]) -> None:
        """Keep the slices of a validation and write the page."""
        try:
            if slices:
                keep_slices(self.folder, epoch, slices)
        except OSError as error:
            self._warn(error)
        else:
            self.write()

    def write(self) -> None:
        """Write the page from the files in the run's folder."""
        try:
            write_run_page(self.folder / NAME, [self.folder], [self.settings], running=True)
        except OSError as error:
            self._warn(error)
        else:
            if self._failed:
                log.info("%s is written again", self.folder / NAME)
            self._failed = False

    def _warn(self, error: OSError) -> None:
        if not self._failed:
            log.warning("%s cannot be written, the run goes on: %s", self.folder / NAME, error)
        self._failed = True


def page_of_runs(settings: PageSettings) -> Path:
    """Write the page of finished or unfinished runs; returns its path.

    Raises:
        ConfigError: a folder is not that of a run.
        CheckpointError: a run has no readable checkpoint, from which its settings are read.
    """
    for folder in settings.runs:
        if not (folder / "log.txt").is_file():
            raise ConfigError(f"{folder} is not the folder of a run: it has no log.txt")
    folders = [folder.resolve() for folder in settings.runs]  # logs/run by its name
    trained = [load_checkpoint(find_checkpoint(folder)).settings for folder in folders]
    output = settings.output
    if output is None:
        output = folders[0] / NAME if len(folders) == 1 else REPOSITORY / "logs" / "page.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_run_page(output, folders, trained)
    return output


def write_run_page(
    path: Path,
    folders: Sequence[Path],
    settings: Sequence[Mapping[str, Any]],
    *,
    running: bool = False,
) -> None:
    """Write the page of one run or several, whole or not at all.

    Args:
        path: of the page.
        folders: of the runs, which are only read.
        settings: of each run, as plain data.
        running: this process is the run. (Another process's run is asked for by its lock.)

    Raises:
        OSError: it cannot be written; the previous page is left as it was.
    """
    names = [folder.name for folder in folders]
    if len({*names}) < len(names):
        names = [f"{folder.parent.name}/{folder.name}" for folder in folders]
    runs, blocks = [], []
    for number, (name, folder, values) in enumerate(zip(names, folders, settings, strict=True)):
        kept = read_slices(folder)
        blocks += _blocks(f"{number}/0", kept.targets)
        for epoch, content in kept.epochs.items():
            blocks += _blocks(f"{number}/{epoch}", content.images)
        records = read_records(folder / "log.txt")
        alive = running or is_locked(folder)
        killed = "ended without a message: killed, or its machine went down"
        run = {
            "name": name,
            "state": ending_of(records) or ("running" if alive else killed),
            "settings": _flat(values),
            "window": values.get("grid_window") or 0.25,
            "curves": curves(read_rows(folder / METRICS, MOST_ROWS)),
            "events": events(records)[-MOST_EVENTS:],
            "log": [" ".join(record) for record in records[-LOG_TAIL:]],
            "slices": [asdict(info) for info in kept.slices],
            "epochs": {
                epoch: {
                    "metrics": content.metrics,
                    "images": [f"{kind}/{position}" for kind, position in content.images],
                }
                for epoch, content in kept.epochs.items()
            },
        }
        runs.append(run)
    page = {
        "runs": runs,
        "defaults": _flat(plain(Settings())),
        "panels": _panels(runs),
        "written": time.strftime("%Y-%m-%d %H:%M:%S"),
        "steps": STEPS,
        "texture": _texture_constants(),
    }
    atomic_write(path, _filled(", ".join(names), page, blocks))


def curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows of metrics.jsonl by epoch: `epochs`, and for each metric a list of as many values.

    Training metrics are means over the rows of an epoch; None where an epoch has no value.
    """
    values: dict[tuple[int, str], list[float]] = defaultdict(list)
    wanted = {key for _, keys in (*PANELS, *ADVERSARY_PANELS) for key in keys}
    for row in rows:
        for key, value in row.items():
            name = f"val_{key}" if row["kind"] == "val" else _OF_TRAINING.get(key, key)
            if row["kind"] in ("train", "val") and name in wanted and _is_number(value):
                values[row["epoch"], name].append(value)
    epochs = sorted({epoch for epoch, _ in values})
    series = {
        name: [_mean(values.get((epoch, name), ())) for epoch in epochs]
        for name in sorted({name for _, name in values})
    }
    return {"epochs": epochs, "series": series}


def events(records: Sequence[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """Rollbacks, stops, resumptions and other warnings of a log, with the epoch they happened in.

    `epoch` lies half an epoch after the last one that was complete.
    """
    found = []
    epoch = 0
    for i, (when, level, text) in enumerate(records):
        match = _EPOCH.match(text)
        if match:
            epoch = int(match[1])
        kind = None
        if ending_of(records[: i + 1]) is not None:
            kind = "complete" if text == "the run is complete" else "stop"
        elif text.startswith("the run is failing"):
            kind = "rollback"
        elif text.startswith("resumed after"):
            kind = "resumed"
        elif level != "INFO":
            kind = "warning"
        if kind is not None:
            at = epoch if kind == "complete" else epoch + 0.5
            found.append({"kind": kind, "epoch": at, "when": when, "text": text})
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _mean(values: Sequence[float]) -> float | None:
    return float(f"{math.fsum(values) / len(values):.6g}") if values else None


def _panels(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, tuple[str, ...]]]:
    """The panels for which a run has values."""
    known = {name for run in runs for name in run["curves"]["series"]}
    return [(title, keys) for title, keys in (*PANELS, *ADVERSARY_PANELS) if known & {*keys}]


def _texture_constants() -> dict[str, float]:
    """What texture.js computes `low_signal_view` with."""
    return {
        "percentile": low_signal.PERCENTILE,
        "blur": low_signal.BLUR,
        "lowSignal": low_signal.LOW_SIGNAL,
        "limitWidth": low_signal_view.LIMIT_WIDTH,
        "levelBlur": low_signal_view.LEVEL_BLUR,
        "leastWeight": low_signal_view.LEAST_WEIGHT,
        "leastLevel": low_signal_view.LEAST_LEVEL,
    }


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings as words; nested keys are written in full."""
    words: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            words |= _flat(value, f"{prefix}{key}.")
        else:
            words[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return words


def _blocks(prefix: str, images: Images) -> Iterator[bytes]:
    """Images as script elements that no browser runs; their ids are run/epoch/kind/slice."""
    for (kind, position), stream in images.items():
        head = f'<script type="text/plain" id="{prefix}/{kind}/{position}">'
        yield head.encode() + base64.b64encode(stream) + b"</script>\n"


def _filled(title: str, page: Mapping[str, Any], blocks: Sequence[bytes]) -> bytes:
    """The template with everything in it."""
    web = resources.files(__package__) / "web"

    def read(names: Sequence[str]) -> str:
        return "\n".join((web / name).read_text(encoding="utf-8") for name in names)

    data = json.dumps(page, allow_nan=False).replace("<", "\\u003c")  # no text can end the element
    before, after = read(["page.html"]).split("<!-- images -->")
    parts = {
        "<!-- title -->": html.escape(title),
        "<!-- styles -->": f"<style>{read(STYLES)}</style>",
        "<!-- page -->": f'<script type="application/json" id="page">{data}</script>',
        "<!-- scripts -->": f"<script>{read(SCRIPTS)}</script>",
    }
    for mark, text in parts.items():
        before, after = before.replace(mark, text), after.replace(mark, text)
    return b"".join([before.encode(), *blocks, after.encode()])
