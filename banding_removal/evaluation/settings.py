"""Settings of an evaluation, and the way from its paths to its files."""

from dataclasses import dataclass
from pathlib import Path

from banding_removal.config.bounds import bounded
from banding_removal.config.overrides import plain
from banding_removal.config.settings import REPOSITORY
from banding_removal.evaluation.evaluate import evaluate
from banding_removal.evaluation.image_sets import reference_volumes
from banding_removal.evaluation.report import claim_output, write_report
from banding_removal.evaluation.sets_settings import SetsSettings, choose_volumes, load_sets
from banding_removal.processes.threads import set_threads
from banding_removal.runs.build import choose_device


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(SetsSettings):
    """What to evaluate."""

    output: Path = REPOSITORY / "logs" / "evaluation"
    probe: bool = True  # train classifiers: about two minutes per set
    probe_steps: int = bounded(300, at_least=1)  # optimiser steps of each classifier


def evaluate_files(settings: EvaluateSettings) -> str:
    """Evaluate the sets and write the files; returns the tables.

    Raises:
        ConfigError: no set is named, a path is missing, or filters leave no volume.
        CheckpointError: a checkpoint cannot be used.
        VolumeError: volumes or reconstructions cannot be used; all are named.
        FileNotFoundError: the folder of volumes is missing or empty.
        FloatingPointError: a reconstruction is not finite.
    """
    device = choose_device(settings.device)
    claim_output(settings.output)
    files = choose_volumes(settings)
    set_threads(files)
    references = reference_volumes(files)
    evaluation = evaluate(
        load_sets(settings, files, device),
        references,
        probe_steps=settings.probe_steps if settings.probe else None,
        device=device,
        seed=settings.seed,
    )
    return write_report(settings.output, evaluation, plain(settings))
