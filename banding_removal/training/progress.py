"""How far a run has come, and the metrics of its steps."""

from dataclasses import dataclass, field
from typing import Any

SMOOTHING = 0.98


@dataclass(kw_only=True)
class Progress:
    """Completed epochs and steps, and what is known of them; a checkpoint has the same fields."""

    epoch: int = 0
    step: int = 0
    batches: int = 0  # of the current epoch and of all processes; the two of a pair count once
    sums: dict[str, float] = field(default_factory=dict)  # of the metrics of this epoch's steps
    history: list[dict[str, Any]] = field(default_factory=list)  # one row an epoch
    start: dict[str, float] = field(default_factory=dict)  # stage 2: validation before it
    events: list[dict[str, Any]] = field(default_factory=list)  # rollbacks

    def add_step(self, values: dict[str, float], batches: int) -> None:
        """Count a step, its metrics, and its batches in all processes."""
        self.step += 1
        self.batches += batches
        for name, value in {**values, "steps": 1.0}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def mean_metrics(self) -> dict[str, float]:
        """The mean of each metric over the steps of the current epoch."""
        names = {"loss": "train_loss", "ssim": "train_ssim"}
        steps = self.sums["steps"]
        return {names.get(k, k): value / steps for k, value in self.sums.items() if k != "steps"}

    def add_epoch(self, row: dict[str, Any]) -> None:
        """Complete the current epoch with its row of the history."""
        self.history.append(row)
        self.epoch, self.batches, self.sums = row["epoch"], 0, {}


@dataclass
class SmoothedMetrics:
    """Exponentially smoothed metrics of the steps of an epoch."""

    values: dict[str, float] = field(default_factory=dict)
    steps: int = 0  # that went in

    def add(self, values: dict[str, float]) -> None:
        """Add the metrics of a step."""
        self.steps += 1
        for name, value in values.items():
            before = self.values.get(name, value)
            self.values[name] = SMOOTHING * before + (1 - SMOOTHING) * value
