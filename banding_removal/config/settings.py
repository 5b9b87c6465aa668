"""Every setting of a training run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from banding_removal.config.bounds import bounded, check_bounds
from banding_removal.data.filters import VolumeFilter
from banding_removal.data.mask_rules import MaskKind
from banding_removal.data.masks import MaskSampler
from banding_removal.errors import ConfigError
from banding_removal.losses.adversary_input import Change, View
from banding_removal.losses.orientation import Target
from banding_removal.model.classifiers import Architecture
from banding_removal.model.predictors import KNOWN, PREDICTORS, is_elsewhere

Stage = Literal["pretrain", "train"]
Recipe = Literal["none", "direct", "adversary", "paper"]
Precision = Literal["auto", "float32", "bfloat16"]

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting of a training run. The defaults are the paper's pretraining (section 5)."""

    # --- run ---
    name: str = "pretrain"  # of the run's folder in `logs`; a number is added if it is taken
    stage: Stage = "pretrain"  # stage 1; train: stage 2, against banding
    recipe: Recipe = "none"  # of stage 2; sets several settings, which key=value can override
    logs: Path = REPOSITORY / "logs"
    resume: Path | None = None  # continue this run: its folder or its newest checkpoint
    # Start from these weights: a run's folder, a checkpoint file, or just a run's name, for the
    # newest run of that name in `logs`. What contains a slash or ends in .pt is taken as a path.
    init_from: str | None = None
    seed: int = bounded(0, at_least=0, below=2**63)
    device: str = "auto"  # auto: the GPU if there is one; or cpu, cuda, cuda:1, ...
    nproc: int | None = bounded(None, above=0)  # processes; null: one per visible GPU, or one
    threads: int | None = bounded(None, above=0)  # per process on a CPU; null: 1 for small images
    timeout_minutes: float = bounded(30.0, above=0)  # longest wait for a process that hangs

    # --- data ---
    data_path: Path = Path("/path/to/fastmri/knee")  # holds <challenge>_train and <challenge>_val
    challenge: Literal["multicoil", "singlecoil"] = "multicoil"
    train_filter: VolumeFilter = field(
        default_factory=lambda: VolumeFilter(magnet=1.5, width=(None, 740), square_target=True)
    )
    val_filter: VolumeFilter = field(
        default_factory=lambda: VolumeFilter(magnet=1.5, square_target=True)
    )
    train_slices: tuple[int | None, int | None] = (None, None)  # of each volume, [first, stop)
    val_slices: tuple[int | None, int | None] = (None, None)
    skip_bad_volumes: bool = False  # leave out unreadable files with a warning
    batch_size: int = bounded(1, above=0)  # per process
    workers: int = bounded(4, at_least=0)  # loading processes per process; 0: load in the process

    # --- undersampling ---
    mask: MaskKind = "magic"
    accelerations: tuple[int, ...] = (4,)
    acs_lines: tuple[int, ...] = (16,)  # fully sampled centre columns
    acs_fractions: tuple[float, ...] = ()  # for the *_fraction masks, instead of acs_lines
    offsets_from_data: bool = True  # acquired columns from the zeros of k-space, not the header
    redraw_masks: bool = True  # a new training mask every time; validation masks are fixed
    rotate_probability: float = bounded(0.5, at_least=0, at_most=1)  # of transposing a slice
    paired: bool = False  # instead: each slice upright and transposed in the same step
    split_pairs: bool = False  # of two processes, each takes one orientation; the step is the same

    # --- predictor ---
    # cascade; varnet, the public one of fastMRI; or package.module:Class, code of your own
    # (docs/predictors.md), which is made with predictor_kwargs alone.
    predictor: str = "cascade"
    predictor_kwargs: dict[str, Any] = field(default_factory=dict)
    cascades: int = bounded(12, above=0)
    chans: int = bounded(18, at_least=2, multiple_of=2)
    pools: int = bounded(4, above=0)
    sens_chans: int = bounded(8, at_least=2, multiple_of=2)
    sens_pools: int | None = bounded(None, above=0)  # null: as many as pools
    sens_identity: bool = True  # maps start as the centre's coil images; false: as published
    dropout: float = bounded(0.0, at_least=0, at_most=1)

    # --- optimisation ---
    epochs: int = bounded(100, above=0)
    optimizer: Literal["adam", "muon"] = "adam"  # of the predictor
    lr: float = bounded(3e-4, above=0)  # of the predictor; Muon needs about 0.02
    lr_drop_every: int | None = bounded(40, above=0)  # epochs between drops; null: never
    lr_drop_factor: float = bounded(0.1, above=0)
    lr_decay: float = bounded(0.0, at_least=0, at_most=1)  # final part of the run: linear to zero
    lr_min: float = bounded(0.0, at_least=0)  # the rates do not drop below this
    trained_cascades: int | None = bounded(None, above=0)  # only the last ones; null: everything
    # Part of the slices in an epoch; the next epoch continues with the next part.
    epoch_fraction: float = bounded(1.0, above=0, at_most=1)
    accumulate: int = bounded(1, above=0)  # batches (or pairs) per process and step
    l1_weight: float = bounded(0.01, at_least=0)
    precision: Precision = "auto"  # of networks in training; auto: bfloat16 on GPUs that have it
    # Number of networks (the sensitivity net first, then the cascades) that store nothing for the
    # backward pass, which runs them again: less memory, the same numbers, about a third more time
    # for each of them.
    recompute: int = bounded(0, at_least=0)
    clip_grad_norm: float | None = bounded(None, above=0)  # of the whole gradient; null: no limit
    rollbacks: int = bounded(5, at_least=0)  # returns of a failing run to its last good state
    rollback_factor: float = bounded(0.5, above=0, at_most=1)  # for rates and weights, each time

    # --- adversary ---
    adversary: Architecture | None = None  # null: none
    adversary_members: int = bounded(1, above=0)  # size of an ensemble, initialised separately
    adversary_chans: int | None = bounded(None, above=0)  # width; null: as published
    adversary_strength: float = bounded(1.0, at_least=0)  # weight of the orientation term
    adversary_target: Target = "uncertain"  # the predictor aims at 1/2; flipped: at the wrong label
    adversary_changes: Change = "everything"  # by its gradient; streaks: nothing else
    adversary_view: View = "image"  # its input; low_signal: dark texture at equal contrast
    # Weight of background in the term, where low-signal anatomy has 1; null: all cells alike.
    adversary_background: float | None = bounded(None, at_least=0)
    adversary_lr: float = bounded(1e-4, above=0)
    adversary_betas: tuple[float, float] = bounded((0.9, 0.999), at_least=0, below=1)  # of Adam
    adversary_from_epoch: int = 1  # first epoch in which the adversary is trained
    adversary_term_from_epoch: int = 1  # first epoch with the orientation term in the loss
    adversary_ramp_steps: int = bounded(0, at_least=0)  # until the term has its full weight
    adversary_pretrain_steps: int = bounded(0, at_least=0)  # of the adversary, before epoch 1
    adversary_pretrain_slices: int = bounded(96, above=0)  # in these steps; reconstructed once
    adversary_replay: int = bounded(0, at_least=0)  # earlier pairs kept, per process
    adversary_replay_batch: int = bounded(3, above=0)  # of these in each adversary batch
    reg_param: float = bounded(0.1, at_least=0)  # weight of the penalty on its gradient
    penalty_every: int = bounded(1, above=0)  # only every n-th step, with n times the weight

    # --- direct loss against streaks ---
    streak_weight: float = bounded(0.0, at_least=0)  # of the loss; 0: without it
    streak_below: float = bounded(0.15, at_least=0)  # aim below zero banding (nat. log; 0.65 dB)
    # Weight of the background; low-signal anatomy has the rest.
    streak_background: float = bounded(0.1, at_least=0, at_most=1)

    # --- output ---
    log_every: int = bounded(50, above=0)  # steps between lines of metrics.jsonl
    keep_checkpoints: int = bounded(3, at_least=0)  # newest ones, at least two; 0: all
    checkpoint_every: int | None = bounded(500, above=0)  # steps within an epoch; null: never
    grid_slices: int = bounded(8, at_least=0)  # validation slices in the picture grid
    validate_every: int = bounded(1, above=0)  # epochs; the last epoch is always validated
    grid_every: int = bounded(1, above=0)  # epochs between grids, of those that are validated
    grid_zero_filled: bool = False  # add a column with the zero-filled input
    grid_window: float | None = bounded(0.25, above=0)  # low-signal white level / volume's max

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.predictor not in PREDICTORS and not is_elsewhere(self.predictor):
            raise ConfigError(f"predictor must be {KNOWN}, got {self.predictor!r}")
        if self.trained_cascades is not None:
            if is_elsewhere(self.predictor):
                raise ConfigError(f"trained_cascades needs predictor={' or '.join(PREDICTORS)}")
            if self.trained_cascades > self.cascades:
                raise ConfigError(f"trained_cascades must be at most cascades={self.cascades}")
        if self.stage == "pretrain" and (
            self.recipe != "none" or self.adversary is not None or self.streak_weight > 0
        ):
            raise ConfigError("recipe, adversary and streak_weight need stage=train")
        if self.split_pairs and not self.paired:
            raise ConfigError("split_pairs needs paired=true")
        if self.adversary_replay and not self.paired:
            raise ConfigError("adversary_replay stores pairs of images: it needs paired=true")
        if self.adversary_ramp_steps and self.adversary_term_from_epoch > 1:
            raise ConfigError(
                "adversary_ramp_steps counts from the first step: it needs "
                "adversary_term_from_epoch=1"
            )
        if (
            Path(self.name).name != self.name
            or self.name in ("", "run", "index", ".", "..")
            or not self.name.isprintable()
        ):
            raise ConfigError(
                f"name must be a plain folder name, not empty, run or index; got {self.name!r}"
            )
        try:
            self.mask_sampler()
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def splits_pairs(self, processes: int) -> bool:
        """Whether each process takes one orientation of a pair; a single process takes both."""
        return self.split_pairs and processes > 1

    def mask_sampler(self) -> MaskSampler:
        """The sampler that the undersampling settings describe."""
        fraction = self.mask.endswith("_fraction")
        acs = self.acs_fractions if fraction else self.acs_lines
        return MaskSampler(kind=self.mask, accelerations=self.accelerations, acs=acs)
