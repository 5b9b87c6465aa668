"""Injects faults into training runs; the table says which are survived, and what they cost.

    make faults
    python -m tests.faults
    python -m tests.faults 'kinds=[killed,disk_full]' kills=10
    python -m tests.faults again=true

Toy runs of both stages, in one process and in two, are killed, stopped and damaged, or run out of
disk space, and are then started again by the same command. A try is survived if the run went on,
or ended with a message that names the cause; lost at most `checkpoint_every` steps; left no process
behind; and ended with the weights, bit for bit, of the same run without a fault. Rows are written
as they come. If interrupted, the same command goes on with the faults that are left.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from banding_removal.command_line import user_errors
from banding_removal.config.overrides import from_words
from banding_removal.errors import ConfigError
from tests.faults import disk, endurance, killed, spoilt
from tests.faults.bench import Bench, Faults, Try
from tests.faults.disk import SmallDisk
from tests.faults.toy import FaultError, Toy

KINDS: dict[str, Callable[[Bench], Iterator[Try]]] = {
    "signals": killed.signals,
    "damaged": disk.damaged,
    "killed_while_writing": killed.killed_while_writing,
    "launcher_killed": killed.launcher_killed,
    "worker_killed": killed.worker_killed,
    "rank_lost": killed.rank_lost,
    "failing": spoilt.failing,
    "volume_spoilt": spoilt.volume_spoilt,
    "two_runs": killed.two_runs,
    "disk_full": disk.disk_full,
    "read_only": disk.read_only,
    "removed": disk.removed,
    "epochs_with_workers": endurance.epochs_with_workers,
    "determinism": endurance.determinism,
    "killed": killed.killed,
    "soak": endurance.soak,
}

NEED_A_DISK = ("disk_full", "read_only")

NEED_TWO = ("launcher_killed", "rank_lost")

DONE = "all done"


def table(rows: list[dict[str, object]]) -> str:
    """Rows as fault | times tried | survived | lost."""
    lines = ["| fault | times tried | survived | lost |", "|---|---|---|---|"]
    by_fault: dict[str, list[dict[str, object]]] = {}
    for row in rows:
        by_fault.setdefault(str(row["fault"]), []).append(row)
    for fault, its in by_fault.items():
        survived = sum(1 for row in its if row["survived"])
        lost = max(int(str(row["lost"])) for row in its)
        notes = list(dict.fromkeys(str(row["note"]) for row in its if row["note"]))
        text = f"{fault} ({notes[-1]})" if notes and len(its) <= 4 else fault
        steps = f"at most {lost} steps" if lost else "nothing"
        lines.append(f"| {text} | {len(its)} | {survived} | {steps} |")
    return "\n".join(lines)


def main(settings: Faults) -> int:
    """Try all faults and print the table; the number of tries that were not survived."""
    unknown = [kind for kind in settings.kinds if kind not in KINDS]
    if unknown:
        raise ConfigError(f"{', '.join(unknown)}: none of {', '.join(KINDS)}")
    path = settings.folder / "rows.jsonl"
    if settings.again:
        path.unlink(missing_ok=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    no_disk = SmallDisk.why_not()
    cases = [
        (name, stage, nproc)
        for name in settings.kinds or KINDS
        for stage in settings.stages
        for nproc in settings.processes
        if nproc > 1 or name not in NEED_TWO
    ]
    for name, stage, nproc in cases:
        case = f"{name}, stage {stage}, {nproc} process{'es' if nproc > 1 else ''}"
        if any(row["case"] == case and row["fault"] == DONE for row in rows):
            continue
        if name in NEED_A_DISK and no_disk:
            print(f"{case}: left out: {no_disk}", flush=True)
            continue
        rows = [row for row in rows if row["case"] != case]  # of tries that were interrupted
        settings.folder.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        folder = settings.folder / case.replace(", ", "-").replace(" ", "_")
        bench = Bench(
            toy=Toy(folder=folder, stage=stage, nproc=nproc),
            settings=settings,
            random=Random(f"{settings.seed} {case}"),
        )
        began, made = time.monotonic(), 0
        for one in _tries(name, bench):
            rows.append({"case": case, **vars(one)})
            write_row(path, rows[-1])
            made += 1
        if all(row["survived"] for row in rows if row["case"] == case):
            rows.append({"case": case, "fault": DONE})
            write_row(path, rows[-1])
            shutil.rmtree(folder, ignore_errors=True)
        print(f"{case}: {made} tries in {time.monotonic() - began:.0f} s", flush=True)
    rows = [row for row in rows if row["fault"] != DONE]
    print(table(rows))
    return sum(1 for row in rows if not row["survived"])


def _tries(name: str, bench: Bench) -> Iterator[Try]:
    """The tries of a kind of fault; after one that is not survived, no more are made."""
    try:
        yield from KINDS[name](bench)
    except (FaultError, AssertionError) as error:
        print(error, flush=True)
        yield Try(fault=f"{name}: failed", note=str(error).partition("\n")[0], survived=False)


def write_row(path: Path, row: dict[str, object]) -> None:
    """Append a line of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    with user_errors():
        sys.exit(1 if main(from_words(Faults(), sys.argv[1:])) else 0)
