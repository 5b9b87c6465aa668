"""Cases from a folder are given to the scripts; the table says what each of them did.

    python -m tests.faults.field folder=/data/cases
    python -m tests.faults.field folder=/data/cases 'only=[mask_of_ones,stale_max]'

What a case holds says what is done: a data set (multicoil_train and multicoil_val) is trained on
for an epoch; a folder of k-space is reconstructed; a folder of reconstructions is evaluated against
the data set `healthy`; `*.sh` is run with DATA (`healthy`) and LOGS set. If the volume filters of
the script remove everything, the case is tried again without them, and both ends are shown.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py

from banding_removal.command_line import user_errors
from banding_removal.config.overrides import from_words
from banding_removal.config.settings import REPOSITORY

PATIENCE_S = 240
TINY = "cascades=1 chans=2 pools=1 sens_chans=2 device=cpu workers=0 epochs=1 acs_lines=[6]"
FILTERS = ("magnet=null", "square_target=false")
# Columns of the header instead of those that hold data, for cases that are about the former.
OF_HEADER = ("header_fractional_size", "no_header")
# What every run says: settings, progress, where it is.
USUAL = re.compile(
    r" {2}[a-z0-9_]+(\.\w+)?: .* = |epoch \d|settings:|run folder |training on |look at "
    r"|.*(it|slice)/s\]|the run is complete"
)


@dataclass(frozen=True, kw_only=True)
class Cases:
    """Which cases."""

    folder: Path = Path("cases")
    only: tuple[str, ...] = ()  # none: all


@dataclass(frozen=True, kw_only=True)
class End:
    """How a command ended: its exit status, and what it said about the case."""

    status: int
    said: tuple[str, ...]


def run(words: list[str], logs: Path, cases: Path) -> End:
    """Run a command at the root of the repository."""
    paths = (str(REPOSITORY), os.environ.get("PYTHONPATH", ""))
    environment = {
        **os.environ,
        **{"DATA": str(cases / "healthy"), "LOGS": str(logs)},
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    environment.pop("OMP_NUM_THREADS", None)
    try:
        done = subprocess.run(
            words,
            cwd=REPOSITORY,
            env=environment,
            timeout=PATIENCE_S,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return End(status=124, said=(f"not ended after {PATIENCE_S} s",))
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    said = [line.strip() for line in lines if line and not USUAL.match(line)]
    return End(status=done.returncode, said=tuple(said))


def ends_of(case: Path, cases: Path, checkpoint: list[Path]) -> Iterator[tuple[str, End]]:
    """Run what fits a case; what was run, and how it ended."""
    with tempfile.TemporaryDirectory() as name:
        logs = Path(name)
        if case.suffix == ".sh" or (case / "run.sh").exists():
            path = case if case.suffix == ".sh" else case / "run.sh"
            yield "bash", run(["bash", str(path)], logs, cases)
        elif (case / "multicoil_train").is_dir():
            words = [f"data_path={case}", f"logs={logs}", *TINY.split()]
            if case.name in OF_HEADER:
                words.append("offsets_from_data=false")
            end = run(_script("pretrain_dev", words), logs, cases)
            yield "pretrain_dev", end
            if any("filters leave none" in line for line in end.said):
                words += [f"{part}_filter.{off}" for part in ("train", "val") for off in FILTERS]
                yield "pretrain_dev, no filters", run(_script("pretrain_dev", words), logs, cases)
        else:
            if not checkpoint:
                checkpoint.append(trained(cases))
            yield apply(case, logs, cases, checkpoint[0])


def _script(name: str, words: list[str]) -> list[str]:
    return [sys.executable, str(REPOSITORY / "scripts" / f"{name}.py"), *words]


def trained(cases: Path) -> Path:
    """The folder of a tiny run on the healthy data set."""
    logs = Path(tempfile.mkdtemp())
    words = [f"data_path={cases / 'healthy'}", f"logs={logs}", *TINY.split()]
    end = run(_script("pretrain_dev", words), logs, cases)
    assert end.status == 0, end
    return logs / "pretrain_dev"


def apply(case: Path, logs: Path, cases: Path, checkpoint: Path) -> tuple[str, End]:
    """Reconstruct a folder of k-space, or evaluate one of reconstructions."""
    with h5py.File(next(case.glob("*.h5"))) as file:
        has_kspace = "kspace" in file
    if has_kspace:
        words = [f"checkpoint={checkpoint}", f"volumes={case}", f"output={logs / 'rec'}"]
        return "reconstruct", run(_script("reconstruct", [*words, "device=cpu"]), logs, cases)
    words = [f"sets={{other: {case}}}", f"volumes={cases / 'healthy' / 'multicoil_val'}"]
    words += [f"output={logs / 'evaluation'}", "probe=false", "device=cpu"]
    return "evaluate", run(_script("evaluate", words), logs, cases)


def main(settings: Cases) -> None:
    """Print the table, a line as soon as a case has ended."""
    paths = [p for p in sorted(settings.folder.absolute().iterdir()) if not p.name.startswith(".")]
    checkpoint: list[Path] = []
    print("| case | run by | exit status | message |\n|---|---|---|---|")
    for case in paths:
        if settings.only and case.stem not in settings.only:
            continue
        for what, end in ends_of(case, settings.folder.absolute(), checkpoint):
            message = "<br>".join(end.said).replace("|", "\\|")
            print(f"| {case.stem} | {what} | {end.status} | {message} |", flush=True)


if __name__ == "__main__":
    with user_errors():
        main(from_words(Cases(), sys.argv[1:]))
