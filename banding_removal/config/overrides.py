"""Settings from `key=value` words and from saved dictionaries, and back into plain data."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from banding_removal.config.renames import refuse_old_words, with_new_names
from banding_removal.config.settings import Settings
from banding_removal.errors import ConfigError

# Raised by OmegaConf and YAML, beside their own exceptions, for values beyond them.
_UNREADABLE = (YAMLError, ValueError, TypeError, IndexError, OverflowError, RecursionError)

SettingsT = TypeVar("SettingsT")


def from_words(defaults: SettingsT, words: Sequence[str]) -> SettingsT:
    """`defaults` (a dataclass instance) with `key=value` words merged in and types checked.

    There are no --flags, because IPython would take them as options of its own. Values are YAML:
    `lr=1e-4`, `accelerations=[4,8]`, `resume=null`, `train_filter.magnet=3`.

    Raises:
        ConfigError: a word without `=`, an unknown key or a value of the wrong type (the message
            lists the valid keys); a value out of range; an old name (the message has the new one).
    """
    invalid = [word for word in words if "=" not in word or word.startswith("-")]
    if invalid:
        message = f"expected key=value, got {' '.join(invalid)}"
        dashed = [word.lstrip("-") for word in invalid if word.startswith("-")]
        if dashed:
            message += f"; write settings without dashes: {' '.join(dashed)}"
        raise ConfigError(f"{message}\n{_valid_keys(defaults)}")
    if isinstance(defaults, Settings):
        refuse_old_words(words)
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
    """The settings that `plain` made a dictionary of, in this version or an earlier one.

    Args:
        content: for instance the settings in a checkpoint.
        origin: its path, for messages.

    Raises:
        ConfigError: unknown keys, wrong types, or OmegaConf interpolations (`${...}`, which can
            read the environment).
    """
    if "${" in repr(content):
        raise ConfigError(f"{origin} is refused: its settings contain interpolations, ${{...}}")
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(Settings), OmegaConf.create(with_new_names(content))
        )
        settings = OmegaConf.to_object(merged)
    except (ConfigError, OmegaConfBaseException, *_UNREADABLE) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{origin}: settings of another version: {reason}") from error
    assert isinstance(settings, Settings)
    return settings


def _expand_paths(settings: SettingsT) -> SettingsT:
    """Replace ~ by the home folder, which the shell does not do after `key=`."""
    try:
        fields = {
            key: type(value)(Path(value).expanduser())
            for key, value in vars(settings).items()
            if isinstance(value, Path) or (isinstance(value, str) and value.startswith("~"))
        }
    except RuntimeError as error:
        raise ConfigError(f"{error}: write paths that begin with ~ in full") from error
    return dataclasses.replace(settings, **fields)  # type: ignore[type-var]


def _valid_keys(defaults: Any) -> str:
    return "Valid keys:\n" + "\n".join(f"  {line}" for line in describe(defaults))


def describe(settings: Any, prefix: str = "") -> list[str]:
    """One line `key: type = value` per setting; nested keys are written in full."""
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
    # str() gives <class 'int'> for a class, but tuple[int, ...] and unions as they are written.
    text = hint.__name__ if type(hint) is type else str(hint)
    return text.replace("typing.", "").replace("pathlib.", "")


def plain(settings: Any) -> dict[str, Any]:
    """Nested dictionaries of numbers, strings and lists: what a checkpoint stores."""

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
