import dataclasses
import re
from pathlib import Path

import pytest

from banding_removal.config.overrides import describe, from_plain, from_words, plain
from banding_removal.config.settings import REPOSITORY, Settings
from banding_removal.data.filters import VolumeFilter
from banding_removal.errors import ConfigError


def test_words_override_fields_of_every_type() -> None:
    settings = from_words(
        Settings(),
        [
            "lr=1e-4",
            "epochs=3",
            "data_path=/data/my knees",
            "accelerations=[4,8]",
            "skip_bad_volumes=False",
            "lr_drop_every=null",
            "mask=random_fraction",
            "acs_fractions=[0.08]",
            "train_filter.magnet=3",
            "train_filter.width=[null,400]",
            "val_filter.acquisitions=[CORPD_FBK]",
        ],
    )
    assert settings.lr == 1e-4
    assert settings.epochs == 3
    assert settings.data_path == Path("/data/my knees")
    assert settings.accelerations == (4, 8)
    assert settings.skip_bad_volumes is False
    assert settings.lr_drop_every is None
    assert settings.train_filter == VolumeFilter(magnet=3, width=(None, 400), square_target=True)
    assert settings.val_filter.acquisitions == ("CORPD_FBK",)


def test_numbers_are_read_as_they_are_written_and_not_as_yaml_does() -> None:
    settings = from_words(Settings(), ["seed=010", "workers=08", "lr=01e-3", "lr_drop_every=007"])
    assert (settings.seed, settings.workers, settings.lr, settings.lr_drop_every) == (
        10,
        8,
        1e-3,
        7,
    )
    for word in ("epochs=1:30", "epochs=0x10", "epochs=0o10", "lr=1:30", "epochs=1.0"):
        with pytest.raises(ConfigError, match=re.escape(f"{word!r} cannot be read")):
            from_words(Settings(), [word])


def test_the_defaults_are_not_changed_by_overrides() -> None:
    defaults = Settings()
    before = plain(defaults)
    from_words(defaults, ["train_filter.magnet=3", "lr=1"])
    assert plain(defaults) == before


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("lrr=1", "Did you mean: 'lr'"),
        ("train_filter.magnt=1", "Did you mean: 'magnet'"),
        ("lr=fast", "could not be converted to Float"),
        ("epochs=1.5", "could not be converted to Integer"),
        ("skip_bad_volumes=maybe", "not a valid bool"),
        ("mask=magical", "expected one of"),
        ("accelerations=4", "accelerations"),
        ("accelerations=[a]", "accelerations"),
        ("--lr=1", "expected key=value"),
        ("lr", "expected key=value"),
    ],
)
def test_a_wrong_word_ends_with_the_reason_and_the_valid_keys(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_words(Settings(), [word])
    assert message in str(caught.value)
    assert "lr: float = 0.0003" in str(caught.value)
    assert "train_filter.magnet: float | None = 1.5" in str(caught.value)


@pytest.mark.parametrize(
    "word",
    [
        "lr=0",
        "epochs=0",
        "workers=-1",
        "rotate_probability=1.5",
        "name=a/b",
        "name=run",
        "accelerations=[]",
        "acs_lines=[0]",
        "mask=magic_fraction",
        "train_filter.fraction=0",
        "seed=-1",
        "lr=inf",
        "l1_weight=nan",
        "lr_drop_factor=-1",
        "chans=3",
        "sens_chans=0",
        "pools=0",
        "epoch_fraction=0",
        "name=..",
        "name=index",
        "adversary_betas=[0.5,1]",
        "adversary_replay=8",
        "trained_cascades=0",
        "trained_cascades=13",
        "accelerations=[4,8",
    ],
)
def test_a_value_out_of_range_is_refused(word: str) -> None:
    with pytest.raises(ConfigError):
        from_words(Settings(), [word])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("lr=inf", "lr must be finite, got inf"),
        ("epoch_fraction=2", "epoch_fraction must be above 0 and at most 1, got 2.0"),
        ("chans=3", "chans must be at least 2 and a multiple of 2, got 3"),
        (
            "adversary_betas=[0.5,1]",
            "adversary_betas must be at least 0 and below 1, got",
        ),
    ],
)
def test_a_value_out_of_bounds_is_answered_with_the_bounds(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_words(Settings(), [word])


def test_every_number_is_bounded_or_has_a_reason_not_to_be() -> None:
    unbounded = {
        field.name
        for field in dataclasses.fields(Settings)
        if type(field.default) in (int, float) and "bounds" not in field.metadata
    }
    # Of an epoch before the first, the first comes.
    assert unbounded == {"adversary_from_epoch", "adversary_term_from_epoch"}


def test_settings_survive_being_saved_as_plain_data() -> None:
    settings = from_words(Settings(), ["accelerations=[4,8]", "train_filter.magnet=3"])
    assert from_plain(plain(settings)) == settings
    with pytest.raises(ConfigError, match="another version"):
        from_plain({**plain(settings), "gone": 1})


def test_every_setting_is_read_somewhere() -> None:
    sources = [
        path.read_text()
        for folder in ("banding_removal", "data")
        for path in (REPOSITORY / folder).rglob("*.py")
    ]
    # Definitions and checks are not uses: a use is an attribute of an object.
    text = re.sub(
        r"(?m)^    def __post_init__.*?(?=^    def |\Z)", "", "\n".join(sources), flags=re.S
    )
    for cls in (Settings, VolumeFilter):
        for field in dataclasses.fields(cls):
            pattern = rf"(settings|self|trained)\.{field.name}\b"
            assert re.search(pattern, text), f"nothing reads {cls.__name__}.{field.name}"


def test_every_setting_is_described_once() -> None:
    lines = describe(Settings())
    assert len(lines) == len(set(lines))
    assert "accelerations: tuple[int, ...] = (4,)" in lines


def test_names_and_paths_are_taken_as_they_are_written() -> None:
    words = ["name=2026_11", "data_path=/a=b/c d #1", "init_from=1e3", "logs='/x y'", "device=cpu"]
    settings = from_words(Settings(), words)
    assert (settings.name, settings.init_from) == ("2026_11", "1e3")
    assert (settings.data_path, settings.logs) == (Path("/a=b/c d #1"), Path("/x y"))
    assert from_words(Settings(), ["init_from=null"]).init_from is None


def test_none_is_null_where_a_setting_may_be_empty() -> None:
    words = ["lr_drop_every=None", "train_filter.magnet=None", "resume=None", "adversary=None"]
    settings = from_words(Settings(adversary=None), words)
    assert (settings.lr_drop_every, settings.resume, settings.adversary) == (None, None, None)
    assert settings.train_filter.magnet is None
    with pytest.raises(ConfigError, match=r"lr is float, and 'lr=None' cannot be read"):
        from_words(Settings(), ["lr=None"])


@pytest.mark.parametrize("word", ["resume=", "data_path= ", "lr="])
def test_a_word_without_a_value_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=f"no value after {word}"):
        from_words(Settings(), ["epochs=2", word])


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("lr=1,5", "lr is float, and 'lr=1,5' cannot be read: "),
        ("acs_lines=16", r"acs_lines is tuple\[int, \.\.\.\], .*; write lists in brackets"),
        ("accelerations=[4 8]", r"accelerations is tuple.* '.*\[4 8\]' cannot be read"),
        ("train_slices=[0,1", r"train_slices is .*, and 'train_slices=\[0,1' cannot be read"),
        ("train_filter.fraction=0", "'train_filter.fraction=0' cannot be read: fraction of the"),
    ],
)
def test_of_several_words_the_wrong_one_is_named(word: str, says: str) -> None:
    words = ["epochs=2", word, "adversary_replay=8", "paired=true"]
    with pytest.raises(ConfigError, match=f"^[^\n]*{says}"):
        from_words(Settings(), words)


def test_home_folders_are_written_in_full() -> None:
    settings = from_words(Settings(), ["init_from=~/logs/a", "logs=~/logs"])
    assert settings.init_from == str(Path.home() / "logs" / "a")
    assert settings.logs == Path.home() / "logs"
