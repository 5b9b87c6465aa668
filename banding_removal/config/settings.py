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
from banding_removal.model.predictors import KNOWN, PREDICTORS, UNROLLED, is_elsewhere

Stage = Literal["pretrain", "train"]
Recipe = Literal["none", "direct", "adversary", "paper"]
Precision = Literal["auto", "float32", "bfloat16"]

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting of a training run. The defaults are the paper's pretraining (section 5).

    Stage 1 is pretraining, stage 2 is training against banding. The *predictor* is the network that
    reconstructs.
    """

    # --- run ---
    name: str = "pretrain"  # folder of the run in `logs`; if it exists, a number is added
    stage: Stage = "pretrain"  # pretrain: stage 1; train: stage 2, against banding
    recipe: Recipe = "none"  # for stage 2: sets several settings, which key=value can override
    logs: Path = REPOSITORY / "logs"
    resume: Path | None = None  # the run to continue: its folder or its newest checkpoint
    # Start from the predictor's weights: of a run (its folder), of a checkpoint file, or of the
    # newest run of this name in `logs`. A value that contains a slash or ends in .pt is a path.
    init_from: str | None = None
    seed: int = bounded(0, at_least=0, below=2**63)
    device: str = "auto"  # auto: the GPU if there is one; or cpu, cuda, cuda:1, ...
    nproc: int | None = bounded(None, above=0)  # processes; null: one per visible GPU, or one
    threads: int | None = bounded(None, above=0)  # of each process on a CPU; null: by image size
    timeout_minutes: float = bounded(30.0, above=0)  # longest wait for another process

    # --- data ---
    data_path: Path = Path("/path/to/fastmri/knee")  # holds <challenge>_train and <challenge>_val
    challenge: Literal["multicoil", "singlecoil"] = "multicoil"
    # Which volumes are used, for instance train_filter.magnet: data/filters.py lists conditions.
    train_filter: VolumeFilter = field(
        default_factory=lambda: VolumeFilter(magnet=1.5, width=(None, 740), square_target=True)
    )
    val_filter: VolumeFilter = field(
        default_factory=lambda: VolumeFilter(magnet=1.5, square_target=True)
    )
    train_slices: tuple[int | None, int | None] = (None, None)  # of each volume: first, stop
    val_slices: tuple[int | None, int | None] = (None, None)  # the slice at `stop` is not used
    skip_bad_volumes: bool = False  # leave out unusable files with a warning
    batch_size: int = bounded(1, above=0)  # per process
    workers: int = bounded(4, at_least=0)  # loading processes per training process; 0: none

    # --- undersampling ---
    mask: MaskKind = "magic"  # magic: offset sampling (data/mask_rules.py has all kinds)
    accelerations: tuple[int, ...] = (4,)  # of several, each mask gets one at random
    acs_lines: tuple[int, ...] = (16,)  # fully sampled centre columns; of several, one at random
    acs_fractions: tuple[float, ...] = ()  # for the *_fraction masks, instead of acs_lines
    offsets_from_data: bool = True  # find the acquired columns in k-space; false: in the header
    redraw_masks: bool = True  # a new training mask in each epoch; validation masks are fixed
    rotate_probability: float = bounded(0.5, at_least=0, at_most=1)  # of transposing a slice
    paired: bool = False  # instead: each slice as acquired and transposed, in the same step
    split_pairs: bool = False  # each of two processes takes one orientation of a pair

    # --- predictor ---
    # cascade: the paper's network; varnet: that of the public fastmri package; or
    # package.module:Class, code of your own, made with predictor_kwargs (docs/predictors.md).
    predictor: str = "cascade"
    predictor_kwargs: dict[str, Any] = field(default_factory=dict)
    cascades: int = bounded(12, above=0)  # unrolled iterations
    chans: int = bounded(18, at_least=2, multiple_of=2)  # channels of the first level of the U-Nets
    pools: int = bounded(4, above=0)  # poolings of the U-Nets
    sens_chans: int = bounded(8, at_least=2, multiple_of=2)  # the same of the sensitivity network
    sens_pools: int | None = bounded(None, above=0)  # null: as many as pools
    # The sensitivity network starts as the identity: the maps are at first the coil images of the
    # centre of k-space. false: random weights, as published.
    sens_identity: bool = True
    dropout: float = bounded(0.0, at_least=0, at_most=1)

    # --- optimisation ---
    epochs: int = bounded(100, above=0)
    optimizer: Literal["adam", "muon"] = "adam"  # of the predictor
    lr: float = bounded(3e-4, above=0)  # of the predictor; Muon needs about 0.02
    lr_drop_every: int | None = bounded(40, above=0)  # epochs between drops; null: never
    lr_drop_factor: float = bounded(0.1, above=0)  # the rates are multiplied by this
    lr_decay: float = bounded(0.0, at_least=0, at_most=1)  # last part of the run: linearly to zero
    lr_min: float = bounded(0.0, at_least=0)  # the rates do not fall below this
    trained_cascades: int | None = bounded(None, above=0)  # train only the last n; null: everything
    # Fraction of the training slices in an epoch; the next epoch continues with the next ones.
    epoch_fraction: float = bounded(1.0, above=0, at_most=1)
    accumulate: int = bounded(1, above=0)  # batches (or pairs) per process and step
    l1_weight: float = bounded(0.01, at_least=0)  # the loss is 1 - SSIM + this * L1
    precision: Precision = "auto"  # of networks in training; auto: bfloat16 on GPUs that have it
    # The first n networks (sensitivity network, then cascades) store nothing for the backward pass,
    # which runs them again: less memory, the same results, a third more time for each of them.
    recompute: int = bounded(0, at_least=0)
    clip_grad_norm: float | None = bounded(None, above=0)  # of the whole gradient; null: no limit
    # Returns to the last good state; then an error. null: none, but worse images are only logged.
    rollbacks: int | None = bounded(5, at_least=0)
    # Factor of the learning rates and of the weights against banding, at each rollback.
    rollback_factor: float = bounded(0.5, above=0, at_most=1)

    # --- adversary ---
    # The adversary is a classifier of the orientation. The "orientation term" is its part of the
    # predictor's loss (docs/adversary.md).
    adversary: Architecture | None = None  # null: none
    adversary_members: int = bounded(1, above=0)  # size of an ensemble
    adversary_chans: int | None = bounded(None, above=0)  # width; null: as published
    adversary_strength: float = bounded(1.0, at_least=0)  # weight of the orientation term
    adversary_target: Target = "uncertain"  # the predictor aims at 1/2; flipped: at the wrong label
    # What its gradient may change in the image; streaks: not the texture across them.
    adversary_changes: Change = "everything"
    adversary_view: View = "image"  # its input; low_signal: dark texture at equal contrast
    # Weight of the background in the orientation term, where low-signal anatomy has 1; null: all
    # parts of the image count alike.
    adversary_background: float | None = bounded(None, at_least=0)
    adversary_lr: float = bounded(1e-4, above=0)  # always Adam
    adversary_betas: tuple[float, float] = bounded((0.9, 0.999), at_least=0, below=1)  # of Adam
    adversary_from_epoch: int = 1  # first epoch in which the adversary is trained
    adversary_term_from_epoch: int = 1  # first epoch with the orientation term in the loss
    adversary_ramp_steps: int = bounded(0, at_least=0)  # until the term has its full weight
    adversary_pretrain_steps: int = bounded(0, at_least=0)  # of the adversary alone, before epoch 1
    adversary_pretrain_slices: int = bounded(96, above=0)  # in these steps, from training data
    adversary_replay: int = bounded(0, at_least=0)  # earlier pairs stored, on the device
    adversary_replay_batch: int = bounded(3, above=0)  # of these, added to each adversary batch
    reg_param: float = bounded(0.1, at_least=0)  # weight of the adversary's gradient penalty
    penalty_every: int = bounded(1, above=0)  # penalty only in every n-th step, n times as strong

    # --- direct loss against streaks ---
    streak_weight: float = bounded(0.0, at_least=0)  # weight of the direct loss; 0: without it
    streak_below: float = bounded(0.15, at_least=0)  # aims this far below zero (nat. log; 0.65 dB)
    # Weight of the background; low-signal anatomy has 1 minus this.
    streak_background: float = bounded(0.1, at_least=0, at_most=1)

    # --- output ---
    log_every: int = bounded(50, above=0)  # steps between lines of metrics.jsonl
    keep_checkpoints: int = bounded(3, at_least=0)  # of the newest epochs, at least two; 0: all
    checkpoint_every: int | None = bounded(500, above=0)  # steps; null: only after each epoch
    grid_slices: int = bounded(8, at_least=0)  # validation slices in the grid and on the run page
    validate_every: int = bounded(1, above=0)  # epochs; the last epoch is always validated
    grid_every: int = bounded(1, above=0)  # epochs between grids, of those that are validated
    grid_zero_filled: bool = False  # add a column with the zero-filled input
    # Enlarged dark parts: this fraction of the volume's maximum is white; null: without them.
    grid_window: float | None = bounded(0.25, above=0)

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.predictor not in PREDICTORS and not is_elsewhere(self.predictor):
            raise ConfigError(f"predictor must be {KNOWN}, got {self.predictor!r}")
        if self.trained_cascades is not None:
            if self.predictor not in UNROLLED:
                raise ConfigError(f"trained_cascades needs predictor={' or '.join(UNROLLED)}")
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
