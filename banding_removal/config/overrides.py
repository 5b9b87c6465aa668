"""Settings from `key=value` words and from saved dictionaries, and back into plain data."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from banding_removal.config.renames import refuse_old_words, with_new_names
from banding_removal.config.settings import Settings
from banding_removal.errors import ConfigError

# Raised by OmegaConf and YAML, beside their own exceptions, for values beyond them.
_UNREADABLE = (YAMLError, ValueError, TypeError, IndexError, OverflowError, RecursionError)
# Of a setting that may be null.
NULLS = ("null", "Null", "NULL", "~", "None")
QUOTED = {str, Path, int, float}

SettingsT = TypeVar("SettingsT")


def from_words(defaults: SettingsT, words: Sequence[str]) -> SettingsT:
    """`defaults` (a dataclass instance) with `key=value` words merged in and types checked.

    There are no --flags, because IPython would take them as options of its own. Values are YAML:
    `lr=1e-4`, `accelerations=[4,8]`, `resume=null`, `train_filter.magnet=3`. Names and paths are
    taken as they are written, also those that YAML reads as numbers (`name=2026_11`); in lists and
    dictionaries, these need quotes. `None` is null.

    Raises:
        ConfigError: a word without `=` or without a value; an unknown key or a value of the wrong
            type (the message lists the valid keys); a value out of range; an old name (the message
            has the new one).
    """
    invalid = [word for word in words if "=" not in word or word.startswith("-")]
    if invalid:
        message = f"expected key=value, got {' '.join(invalid)}"
        dashed = [word.lstrip("-") for word in invalid if word.startswith("-")]
        if dashed:
            message += f"; write settings without dashes: {' '.join(dashed)}"
        raise ConfigError(f"{message}\n{_valid_keys(defaults)}")
    empty = [word for word in words if not word.partition("=")[2].strip()]
    if empty:  # of a shell variable that is not set, perhaps
        raise ConfigError(f"no value after {' '.join(empty)}; null stands for none")
    if isinstance(defaults, Settings):
        refuse_old_words(words)
    hints = dict(_typed_fields(defaults))
    as_yaml = {word: _as_yaml(word, hints) for word in words}
    try:
        settings = _merged(defaults, [as_yaml[word] for word in words])
    except (OmegaConfBaseException, *_UNREADABLE) as error:
        raise ConfigError(_reason(defaults, as_yaml, error, hints)) from error
    if not isinstance(settings, type(defaults)):
        raise TypeError(f"expected {type(defaults).__name__}, got {type(settings).__name__}")
    return _expand_paths(settings)


def _merged(defaults: object, words: list[str]) -> Any:
    words_as_settings = OmegaConf.from_dotlist(words)
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(defaults), words_as_settings))


def _as_yaml(word: str, hints: dict[str, Any]) -> str:
    """A word with its value as YAML: in quotes where the setting is one text, path or number.

    To YAML, the number 010 is 8, and 1:30 is 90; texts are converted as Python does it.
    """
    key, _, value = word.partition("=")
    hint, value = hints.get(key), value.strip()
    types = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value in NULLS and NoneType in types:
        return f"{key}=null"
    if value == "null" or value.startswith(("'", '"')) or not QUOTED & {*types}:
        return word
    value = value.replace("${", r"\${")  # for OmegaConf, that would be another setting's value
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def _reason(
    defaults: object, words: dict[str, str], error: Exception, hints: dict[str, Any]
) -> str:
    """Why words cannot be merged into the defaults, with the word and what it should be.

    Args:
        defaults: of the settings.
        words: as they were typed, each with its form as YAML.
        error: what merging them raised.
        hints: types of the settings.
    """
    where = ""
    for word, as_yaml in words.items():
        try:
            _merged(defaults, [as_yaml])
        except ConfigError:  # of its value alone, or it needs another word
            continue
        except (OmegaConfBaseException, *_UNREADABLE) as found:
            key, error = word.partition("=")[0], found
            expected = f"{key} is {_type_name(hints[key])}, and " if key in hints else ""
            where = f"{expected}{word[:200]!r} cannot be read: "
            break
    message = where + str(getattr(error, "msg", None) or error).partition("\n")[0]
    if getattr(error, "full_key", None):
        message += f" ({error.full_key})"  # type: ignore[attr-defined]
    if "TupleConfig" in message or "ListConfig" in message:
        message += "; write lists in brackets, [4,8]"
    return f"{message}\n{_valid_keys(defaults)}"


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


def describe(settings: Any) -> list[str]:
    """One line `key: type = value` per setting; nested keys are written in full."""
    return [
        f"{key}: {_type_name(hint)} = {attrgetter(key)(settings)}"
        for key, hint in _typed_fields(settings)
    ]


def _typed_fields(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The key and the type of each setting; nested keys are written in full."""
    hints = get_type_hints(type(settings))
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        if dataclasses.is_dataclass(value):
            yield from _typed_fields(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", hints[item.name]


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
