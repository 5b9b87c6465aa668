from typing import Any

import pytest

from banding_removal.config.overrides import from_plain, from_words
from banding_removal.config.renames import EVERY_NETWORK
from banding_removal.config.settings import Settings
from banding_removal.errors import ConfigError
from tests.support.old_settings import as_saved_before_renames


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(init_from="logs/pretrain"),
        Settings(recompute=EVERY_NETWORK),
        Settings(stage="train", init_from="pretrain"),
        Settings(stage="train", init_from="/logs/pretrain", streak_weight=0.1),
        Settings(
            stage="train",
            adversary="patch",
            adversary_from_epoch=2,
            adversary_term_from_epoch=3,
            adversary_pretrain_steps=4,
            adversary_pretrain_slices=5,
        ),
    ],
)
def test_settings_saved_under_old_names_are_those_of_the_new_ones(settings: Settings) -> None:
    old = as_saved_before_renames(settings)
    assert {"restart", "after", "rollback_lowers", "warmup_adversary_from"} <= old.keys()
    assert not {"stage", "recipe", "init_from"} & old.keys()
    assert from_plain(old) == settings


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ({"recompute": "auto"}, "recompute", 0),
        ({"recompute": "none"}, "recompute", 0),
        ({"recompute": "all"}, "recompute", EVERY_NETWORK),
        ({"restart": "a/b", "after": "pretrain"}, "init_from", "a/b"),  # what then counted
    ],
)
def test_old_values_have_a_new_one(change: dict[str, Any], key: str, value: object) -> None:
    old = as_saved_before_renames(Settings())
    assert getattr(from_plain({**old, **change}), key) == value


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("restart=logs/pretrain", "restart=logs/pretrain is now init_from=logs/pretrain"),
        ("after=pretrain", "after=pretrain is now init_from=pretrain"),
        ("recompute=auto", "recompute=auto is now recompute=0"),
        ("recompute=all", f"recompute=all is now recompute={EVERY_NETWORK}"),
        ("recipe=ours", "recipe=ours is now recipe=direct"),
        ("warmup_adversary_from=2", "warmup_adversary_from=2 is now adversary_from_epoch=2"),
        ("adversary_epoch_from=2", "adversary_epoch_from=2 is now adversary_term_from_epoch=2"),
        ("adversary_warmup_steps=2", "adversary_warmup_steps=2 is now adversary_pretrain_steps=2"),
        (
            "adversary_warmup_slices=2",
            "adversary_warmup_slices=2 is now adversary_pretrain_slices=2",
        ),
        ("rollback_lowers=rate", "rollback_lowers is no longer a setting: leave it out"),
    ],
)
def test_an_old_word_is_answered_in_one_line_with_the_new_one(word: str, answer: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_words(Settings(), [word])
    assert str(caught.value) == answer


def test_all_old_words_are_answered_at_once() -> None:
    with pytest.raises(ConfigError, match=r"^restart=a is now init_from=a; recompute=all is now"):
        from_words(Settings(), ["restart=a", "lr=1", "recompute=all"])
