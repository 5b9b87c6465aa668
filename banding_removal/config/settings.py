"""Settings of a run, and how the command line overrides them."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from banding_removal.data.filters import VolumeFilter
from banding_removal.data.masks import MaskKind, MaskSampler
from banding_removal.errors import ConfigError
from banding_removal.losses.orientation import Change, Target, View
from banding_removal.model.classifiers import Architecture

Precision = Literal["auto", "float32", "bfloat16"]

REPOSITORY = Path(__file__).resolve().parents[2]
# What OmegaConf and YAML raise, beside their own exceptions, of values that are beyond them.
_UNREADABLE = (YAMLError, ValueError, TypeError, IndexError, OverflowError, RecursionError)

# Settings of earlier versions that stand in checkpoints, whose weights do not depend on them.
RETIRED = ("rollback_lowers",)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything a run can be told. The defaults are the paper's pretraining (section 5)."""

    # --- run ---
    name: str = "pretrain"  # the run's folder under `logs`; a number is added when it is taken
    logs: Path = REPOSITORY / "logs"
    resume: Path | None = None  # go on with everything: a run's folder or one of its checkpoints
    restart: Path | None = None  # new run from the weights only of such a folder or checkpoint
    after: str | None = None  # without these two: from the weights of the newest run of this name
    seed: int = 0
    device: str = "auto"  # auto: the GPU if there is one; or cpu, cuda, cuda:1, ...
    nproc: int | None = None  # processes on this machine; null: one per visible GPU, or one
    timeout_minutes: float = 30.0  # longest that processes wait for one that hangs

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
    skip_bad_volumes: bool = False  # warn of unreadable files and go on without them
    batch_size: int = 1  # of each process
    workers: int = 4  # loading processes of each; 0: none beside the training process

    # --- undersampling ---
    mask: MaskKind = "magic"
    accelerations: tuple[int, ...] = (4,)
    acs_lines: tuple[int, ...] = (16,)  # fully sampled centre columns
    acs_fractions: tuple[float, ...] = ()  # instead of acs_lines for the *_fraction masks
    offsets_from_data: bool = True  # acquired columns from the zeros of k-space, not the header
    redraw_masks: bool = True  # in training a new mask every time; validation's never change
    rotate_probability: float = 0.5  # transpose a training slice before it is undersampled
    paired: bool = False  # instead: each slice upright and transposed, both in the same step

    # --- predictor ---
    cascades: int = 12
    chans: int = 18
    pools: int = 4
    sens_chans: int = 8
    sens_identity: bool = True  # maps begin as the centre's coil images; false: as published
    dropout: float = 0.0

    # --- optimisation ---
    epochs: int = 100
    optimizer: Literal["adam", "muon"] = "adam"  # of the predictor
    lr: float = 3e-4  # of Adam; Muon wants about 0.02
    lr_drop_every: int | None = 40  # epochs between drops of the learning rate; null: never
    lr_drop_factor: float = 0.1
    lr_decay: float = 0.0  # part of the run, its last, in which the rates fall linearly to zero
    lr_min: float = 0.0  # the rates do not drop below this
    trained_cascades: int | None = None  # the last ones, and nothing else; null: everything
    epoch_fraction: float = 1.0  # part of the slices in one epoch, each time the next part
    accumulate: int = 1  # batches (pairs), of each process, whose gradients make one step
    l1_weight: float = 0.01
    precision: Precision = "auto"  # of networks in training; auto: bfloat16 on GPUs with it
    recompute: int = 0  # networks that keep nothing for the backward pass, the first ones
    clip_grad_norm: float | None = None  # largest norm of the whole gradient; null: as it is
    rollbacks: int = 5  # how often a failing run may go back to its last good state; 0: it ends
    rollback_factor: float = 0.5  # of the rates and of the weights against banding, each time

    # --- adversary (stage 2) ---
    adversary: Architecture | None = None  # null: stage 1, no adversary
    adversary_members: int = 1  # an ensemble of so many, each with its own initialisation
    adversary_chans: int | None = None  # width of the adversary; null: the published one
    adversary_strength: float = 1.0  # weight of the orientation term in the predictor's loss
    adversary_target: Target = "uncertain"  # the predictor wants to hear 1/2, or the flipped label
    adversary_changes: Change = "everything"  # in the image; streaks: nothing written across them
    adversary_view: View = "image"  # what it sees; low_signal: dark texture at equal contrast
    adversary_lr: float = 1e-4
    adversary_betas: tuple[float, float] = (0.9, 0.999)  # of its Adam
    adversary_epoch_from: int = 1  # first epoch with the orientation term in the predictor's loss
    adversary_ramp_steps: int = 0  # steps over which the strength grows to its full value
    warmup_adversary_from: int = 1  # first epoch in which the adversary is trained
    adversary_warmup_steps: int = 0  # steps of the adversary alone, before the first epoch
    adversary_warmup_slices: int = 96  # for these, reconstructed once by the predictor as it is
    adversary_replay: int = 0  # pairs of reconstructions, of each process, kept for the adversary
    adversary_replay_batch: int = 3  # of them are added to each of the adversary's batches
    reg_param: float = 0.1  # weight of the penalty on the adversary's gradient
    penalty_every: int = 1  # steps between penalties, which then weigh so many times as much

    # --- beside the adversary, or instead of it ---
    streak_weight: float = 0.0  # of the direct term against streaks along phase encode
    streak_below: float = 0.15  # it asks for so much less than none (natural logarithm; 0.65 dB)
    streak_background: float = 0.1  # the background's part of it; low-signal anatomy has the rest

    # --- what one looks at ---
    log_every: int = 50  # steps between lines of metrics.jsonl
    keep_checkpoints: int = 3  # newest ones kept, two at least; 0: all
    checkpoint_every: int | None = 500  # steps between checkpoints within an epoch; null: none
    grid_slices: int = 8  # validation slices in the picture grid
    validate_every: int = 1  # epochs between validations; the last epoch always has one
    grid_every: int = 1  # epochs between grids, of those that are validated
    grid_zero_filled: bool = False  # add a column with the zero-filled input
    grid_window: float | None = 0.25  # low-signal columns: white at this part of the volume's max

    def __post_init__(self) -> None:
        positive = (
            *("batch_size", "cascades", "epochs", "lr", "log_every", "accumulate"),
            *("grid_every", "validate_every", "checkpoint_every", "nproc", "timeout_minutes"),
            *("lr_drop_every", "clip_grad_norm", "grid_window", "lr_drop_factor"),
            *("adversary_members", "adversary_chans", "adversary_lr", "pools"),
            *("adversary_warmup_slices", "adversary_replay_batch", "penalty_every"),
        )
        for name in positive:
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name} must be positive and finite, got {value}")
        not_negative = (
            *("workers", "keep_checkpoints", "grid_slices", "l1_weight", "lr_min"),
            *("adversary_strength", "reg_param", "seed", "streak_weight", "rollbacks"),
            *("streak_below", "adversary_ramp_steps", "adversary_warmup_steps", "adversary_replay"),
        )
        for name in not_negative:
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ConfigError(f"{name} must be finite and not negative, got {value}")
        if self.seed >= 2**63:
            raise ConfigError(f"seed must be less than 2^63, got {self.seed}")
        for name in ("chans", "sens_chans"):
            if getattr(self, name) < 2 or getattr(self, name) % 2:
                raise ConfigError(f"{name} must be even and positive, got {getattr(self, name)}")
        for name in ("rotate_probability", "dropout", "lr_decay", "streak_background"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.trained_cascades is not None and not 0 < self.trained_cascades <= self.cascades:
            raise ConfigError(
                f"trained_cascades must be in 1 ... {self.cascades}, got {self.trained_cascades}"
            )
        if not 0 < self.rollback_factor <= 1:
            raise ConfigError(f"rollback_factor must be in (0, 1], got {self.rollback_factor}")
        if not 0 < self.epoch_fraction <= 1:
            raise ConfigError(f"epoch_fraction must be in (0, 1], got {self.epoch_fraction}")
        if not all(0 <= beta < 1 for beta in self.adversary_betas):
            raise ConfigError(f"adversary_betas must be in [0, 1), got {self.adversary_betas}")
        if self.adversary_replay and not self.paired:
            raise ConfigError("adversary_replay keeps pairs: it needs paired=true")
        if self.adversary_ramp_steps and self.adversary_epoch_from > 1:
            raise ConfigError(
                "adversary_ramp_steps counts from the first step: it needs adversary_epoch_from=1"
            )
        if self.resume and self.restart:
            raise ConfigError(
                "resume goes on with a run, restart begins a new one: set one of them"
            )
        if (
            Path(self.name).name != self.name
            or self.name in ("", "run", "index", ".", "..")
            or not self.name.isprintable()
        ):
            raise ConfigError(f"name must be a new folder's name, got {self.name!r}")
        try:
            self.mask_sampler()
        except ValueError as error:
            raise ConfigError(str(error)) from error

    @property
    def batches_per_step(self) -> int:
        """Batches of each process that make one step; the two of a pair count separately."""
        return self.accumulate * (2 if self.paired else 1)

    def mask_sampler(self) -> MaskSampler:
        """The sampler that the undersampling settings describe."""
        fraction = self.mask.endswith("_fraction")
        acs = self.acs_fractions if fraction else self.acs_lines
        return MaskSampler(kind=self.mask, accelerations=self.accelerations, acs=acs)


SettingsT = TypeVar("SettingsT")


def from_words(defaults: SettingsT, words: Sequence[str]) -> SettingsT:
    """`defaults` (a dataclass instance) with `key=value` words merged in and types checked.

    Words rather than --flags, which IPython takes for itself. Values are YAML: `lr=1e-4`,
    `accelerations=[4,8]`, `resume=null`, `train_filter.magnet=3`.

    Raises:
        ConfigError: a word without `=`, an unknown key, a value of the wrong type or out of range.
            The message lists the valid keys.
    """
    lost = [word for word in words if "=" not in word or word.startswith("-")]
    if lost:
        raise ConfigError(f"expected key=value, got {' '.join(lost)}\n{_valid_keys(defaults)}")
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(defaults), OmegaConf.from_dotlist(list(words))
        )
        settings = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = f" ({error.full_key})" if error.full_key else ""
        message = str(error.msg or error).splitlines()[0]
        raise ConfigError(f"{message}{key}\n{_valid_keys(defaults)}") from error
    except _UNREADABLE as error:
        raise ConfigError(f"cannot read {' '.join(words)[:200]!r}: {error}") from error
    if not isinstance(settings, type(defaults)):
        raise TypeError(f"expected {type(defaults).__name__}, got {type(settings).__name__}")
    return _expand_paths(settings)


def from_plain(content: dict[str, Any], origin: object = "settings") -> Settings:
    """Settings from what `plain` made of them, for instance those in a checkpoint, `origin`.

    Raises:
        ConfigError: keys or types are not those of this version, or a value is to be looked up
            elsewhere (OmegaConf's `${...}`, which also reads the environment).
    """
    if "${" in repr(content):
        raise ConfigError(f"{origin} is refused: its settings hold values to look up, ${{...}}")
    try:
        known = {key: value for key, value in content.items() if key not in RETIRED}
        merged = OmegaConf.merge(OmegaConf.structured(Settings), OmegaConf.create(known))
        settings = OmegaConf.to_object(merged)
    except (ConfigError, OmegaConfBaseException, *_UNREADABLE) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{origin}: settings of another version: {reason}") from error
    assert isinstance(settings, Settings)
    return settings


def _expand_paths(settings: SettingsT) -> SettingsT:
    """Home folders written as ~ in full; the shell leaves them alone behind `key=`."""
    try:
        fields = {k: v.expanduser() for k, v in vars(settings).items() if isinstance(v, Path)}
    except RuntimeError as error:
        raise ConfigError(f"{error}: write paths that begin with ~ in full") from error
    return dataclasses.replace(settings, **fields)  # type: ignore[type-var]


def _valid_keys(defaults: Any) -> str:
    return "Valid keys:\n" + "\n".join(f"  {line}" for line in describe(defaults))


def describe(settings: Any, prefix: str = "") -> list[str]:
    """One line `key: type = value` for every setting, nested ones with their full key."""
    lines = []
    hints = get_type_hints(type(settings))
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        if dataclasses.is_dataclass(value):
            lines += describe(value, f"{prefix}{item.name}.")
        else:
            lines.append(f"{prefix}{item.name}: {_type_name(hints[item.name])} = {value}")
    return lines


def _type_name(hint: Any) -> str:
    # A plain class prints as <class 'int'>; tuple[int, ...] and unions print as they are written.
    text = hint.__name__ if type(hint) is type else str(hint)
    return text.replace("typing.", "").replace("pathlib.", "")


def plain(settings: Any) -> dict[str, Any]:
    """The settings as nested dictionaries of numbers, strings and lists, safe to save."""

    def convert(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: convert(item) for key, item in value.items()}
        if isinstance(value, tuple | list):
            return [convert(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return convert(dataclasses.asdict(settings))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`key: old -> new` for every key whose plain values differ."""
    keys = sorted({*old, *new})
    return [f"{k}: {old.get(k)} -> {new.get(k)}" for k in keys if old.get(k) != new.get(k)]
