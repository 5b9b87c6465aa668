"""An epoch in words and pictures: a line of the log, the grid's header, curves."""

import math
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from banding_removal.config.settings import Settings
from banding_removal.model.predictors import is_elsewhere
from banding_removal.pictures.curves import write_curves
from banding_removal.pictures.validation_grid import write_validation_grid
from banding_removal.training.validation import ValidationResult

History = list[dict[str, Any]]  # one row an epoch


def history_row(result: ValidationResult) -> dict[str, Any]:
    """The validation's part of a row of the history: all metrics, and those of each volume."""
    return {
        **{f"val_{key}": value for key, value in result.metrics.items()},
        "volumes": {name: asdict(quality) for name, quality in result.volumes.items()},
    }


def epoch_line(row: dict[str, Any], epochs: int, device: torch.device) -> str:
    """One line of the log for a row of the history."""
    parts = [f"epoch {row['epoch']}/{epochs}: loss {row['train_loss']:.4f}"]
    if "val_loss" in row:
        parts.append(f"validation {validation_in_words(row)}")
    if "accuracy" in row:
        parts.append(
            f"adversary: accuracy {row['accuracy']:.3f}, loss {row['adversary_orientation']:.4f}, "
            f"penalty {row['penalty']:.2g}, bias {row['bias']:.2f}"
        )
    parts.append(
        f"{row['step_ms']:.0f} ms a step (of which {row['wait_ms']:.0f} waiting for data), "
        f"{peak_memory_gb(device):.1f} GB"
    )
    return "; ".join(parts)


def validation_in_words(row: dict[str, Any]) -> str:
    """The validation's part of a row of the history."""
    text = (
        f"loss {row['val_loss']:.4f}  SSIM {row['val_ssim']:.4f}  NMSE {row['val_nmse']:.4f}  "
        f"PSNR {row['val_psnr']:.2f} dB"
    )
    if math.isnan(row["val_banding"]):
        return f"{text}  banding not measurable"
    # runs of earlier versions have the excess without its sign
    excess = row.get("val_banding_signed_excess", row.get("val_banding_excess", math.nan))
    return (
        f"{text}  banding {row['val_banding']:.2f} dB  signed excess {excess:.2f} %  "
        f"along/across {row['val_banding_along']:.1f}/{row['val_banding_across']:.1f} dB"
    )


def progress_text(smoothed: dict[str, float], device: torch.device) -> str:
    """What the progress bar says of the running epoch."""
    text = f"loss {smoothed['loss']:.4f}, {peak_memory_gb(device):.1f} GB"
    return f"{text}, accuracy {smoothed['accuracy']:.2f}" if "accuracy" in smoothed else text


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory use in GB: allocated on the GPU, or resident of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes, but bytes on macOS.
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def write_pictures(
    folder: Path, settings: Settings, history: History, result: ValidationResult | None
) -> None:
    """Write the curves of a history, and the grid of the epoch it ends with, where one is due.

    `result` is the validation of this epoch, if it has one.
    """
    epoch = history[-1]["epoch"]
    write_curves(folder / "curves.png", history, f"{folder.name}, epoch {epoch}")
    due = epoch % settings.grid_every == 0 or epoch == settings.epochs
    if result is not None and result.display and due:
        write_validation_grid(
            folder / "grids" / f"epoch{epoch:03d}.png",
            result.display,
            header=_grid_header(settings, folder, history),
            zero_filled=settings.grid_zero_filled,
            window=settings.grid_window,
        )


def _grid_header(settings: Settings, folder: Path, history: History) -> list[str]:
    """The run's settings and its newest validations."""
    masks = settings.acs_fractions if settings.mask.endswith("_fraction") else settings.acs_lines
    return [
        f"{folder.name}, epoch {history[-1]['epoch']} of {settings.epochs}: "
        f"{_network(settings)}; "
        f"mask {settings.mask}, acceleration {settings.accelerations}, centre {masks}; "
        f"lr {history[-1]['lr']:.3g}, seed {settings.seed}{_adversary(settings)}",
        *(
            f"epoch {row['epoch']}: validation {validation_in_words(row)}"
            for row in [row for row in history if "val_loss" in row][-5:]
        ),
    ]


def _network(settings: Settings) -> str:
    if is_elsewhere(settings.predictor):
        return f"{settings.predictor} {settings.predictor_kwargs or ''}".strip()
    return (
        f"predictor {settings.predictor}, {settings.cascades} cascades, {settings.chans} channels, "
        f"{settings.pools} poolings"
    )


def _adversary(settings: Settings) -> str:
    if settings.adversary is None:
        return ""
    return (
        f"; {settings.adversary_members} adversary {settings.adversary}, "
        f"strength {settings.adversary_strength}, penalty {settings.reg_param}"
    )
