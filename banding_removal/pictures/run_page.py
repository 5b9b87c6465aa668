"""The run page: `index.html` in a run's folder, and the same page of several runs side by side.

One file that opens from a disk, without network: slices by epoch in 16 bits (`kept_slices`),
curves, events and log (log.txt), settings. All that draws is in `web/`. Curves by epoch are the
history, those of single steps a sample of metrics.jsonl: the many rows of a long run need not be
read after every validation.
"""

import base64
import html
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from banding_removal.config.overrides import plain
from banding_removal.config.settings import REPOSITORY, Settings
from banding_removal.errors import ConfigError
from banding_removal.files import atomic_write
from banding_removal.metrics import low_signal, low_signal_view
from banding_removal.pictures.curves import PANELS, STEP_PANELS, Panels, panels_with_values
from banding_removal.pictures.kept_slices import Images, keep_slices, read_slices
from banding_removal.pictures.page_content import (
    History,
    curves,
    events,
    step_curves,
    with_start,
)
from banding_removal.pictures.validation_grid import ValidatedSlice
from banding_removal.runs.checkpoint import open_checkpoint
from banding_removal.runs.log import KILLED, ending_of, read_records
from banding_removal.runs.metrics_file import METRICS, spread_rows
from banding_removal.runs.status import is_locked

log = logging.getLogger(__name__)

NAME = "index.html"
MOST_EVENTS = 200
LOG_TAIL = 60  # records
MOST_STEPS = 600  # in curves of single steps
SCRIPTS = ("uPlot.iife.min.js", "images.js", "texture.js", "viewer.js", "input.js", "curves.js")
STYLES = ("uPlot.min.css", "page.css")


@dataclass(frozen=True, kw_only=True)
class PageSettings:
    """Settings of scripts/page.py."""

    runs: tuple[Path, ...] = (REPOSITORY / "logs" / "run",)  # folders of runs
    output: Path | None = None  # null: index.html of a single run, otherwise logs/page.html

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("name one run or more: 'runs=[logs/pretrain,logs/train]'")


class ShownRun(NamedTuple):
    """A run for a page. Its folder is only read."""

    folder: Path
    settings: Mapping[str, Any]  # as plain data
    history: History  # the validation before stage 2 is epoch 0
    running: bool  # a process writes to it


class PageWriter:
    """Keeps the page of a run that is being trained.

    A page that cannot be written never ends the run: it is logged, once until it works again.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = plain(settings)
        self._failed = False

    def add_epoch(
        self,
        epoch: int,
        slices: Sequence[ValidatedSlice],
        history: History,
        start: Mapping[str, float],
    ) -> None:
        """Keep the slices of an epoch's validation and write the page.

        Args:
            epoch: 0: before stage 2.
            slices: to show.
            history: a row per epoch.
            start: metrics of the validation before stage 2.
        """
        try:
            if slices:
                keep_slices(self.folder, epoch, slices)
        except OSError as error:
            self._warn(error)
        else:
            self.write(history, start)

    def write(self, history: History, start: Mapping[str, float]) -> None:
        """Write the page from the history and the files in the run's folder."""
        run = ShownRun(self.folder, self.settings, with_start(history, start), running=True)
        try:
            write_run_page(self.folder / NAME, [run])
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
    runs = []
    for folder in folders:
        _, checkpoint = open_checkpoint(folder)
        history = with_start(checkpoint.history, checkpoint.start)
        runs.append(ShownRun(folder, checkpoint.settings, history, running=is_locked(folder)))
    output = settings.output
    if output is None:
        output = folders[0] / NAME if len(folders) == 1 else REPOSITORY / "logs" / "page.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_run_page(output, runs)
    return output


def write_run_page(path: Path, shown: Sequence[ShownRun]) -> None:
    """Write the page of one run or several, whole or not at all.

    Raises:
        OSError: it cannot be written; the previous page is left as it was.
    """
    names = [run.folder.name for run in shown]
    if len({*names}) < len(names):
        names = [f"{run.folder.parent.name}/{run.folder.name}" for run in shown]
    runs: list[dict[str, Any]] = []
    blocks: list[bytes] = []
    for number, (name, one) in enumerate(zip(names, shown, strict=True)):
        kept = read_slices(one.folder)
        blocks += _blocks(f"{number}/0", kept.targets)
        for epoch, content in kept.epochs.items():
            blocks += _blocks(f"{number}/{epoch}", content.images)
        records = read_records(one.folder / "log.txt")
        run = {
            "name": name,
            "state": ending_of(records) or ("running" if one.running else KILLED),
            "settings": _flat(one.settings),
            "window": one.settings.get("grid_window") or 0.25,
            "curves": curves(one.history),
            "steps": step_curves(spread_rows(one.folder / METRICS, MOST_STEPS), one.settings),
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
        "panels": {
            "curves": _panels(runs, "curves", PANELS),
            "steps": _panels(runs, "steps", STEP_PANELS),
        },
        "written": time.strftime("%Y-%m-%d %H:%M:%S"),
        "texture": _texture_constants(),
    }
    atomic_write(path, _filled(", ".join(names), page, blocks))


def _panels(runs: Sequence[Mapping[str, Any]], kind: str, panels: Panels) -> Panels:
    """The panels for which a run has values."""
    known = {name for run in runs for name in run[kind]["series"]}
    return panels_with_values(panels, known)


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
