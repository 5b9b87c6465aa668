from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from banding_removal.command_line import settings_of
from banding_removal.config.demo import STAGE_2
from banding_removal.config.recipes import PUBLISHED, RECIPES, with_recipe
from banding_removal.config.settings import Settings
from banding_removal.errors import ConfigError
from scripts import train, train_dev


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_word_that_others_may_change(name: str) -> None:
    settings = settings_of(STAGE_2, [f"recipe={name}", "adversary_strength=7", "lr=1e-5"])
    assert settings.adversary_strength == 7
    assert settings.lr == 1e-5
    for key, value in RECIPES[name].items():
        if key != "adversary_strength":
            assert getattr(settings, key) == value
    assert settings.epochs == STAGE_2.epochs


def test_the_paper_s_recipe_is_what_was_published() -> None:
    settings = settings_of(train.SETTINGS, ["recipe=paper"], {"paper": PUBLISHED})
    published = Settings(
        adversary="shallow",
        adversary_lr=1e-4,
        adversary_strength=1.0,
        reg_param=0.1,
        epochs=1000,
        epoch_fraction=0.2,
        lr=1e-4,
        lr_drop_every=40,
        lr_min=1e-6,
    )
    for key in (*RECIPES["paper"], *PUBLISHED):
        assert getattr(settings, key) == getattr(published, key), key


@pytest.mark.parametrize("script", [train, train_dev])
def test_the_scripts_have_our_recipe_and_others_at_the_published_rates(script: ModuleType) -> None:
    schedules = {"paper": PUBLISHED, "adversary": PUBLISHED}
    ours = settings_of(script.SETTINGS, ["lr=1e-5"], schedules)
    assert ours.lr == 1e-5
    assert ours.adversary is None and ours.streak_weight > 0
    for key in ("optimizer", "lr_decay", "lr_drop_every", "clip_grad_norm"):  # as it was judged
        assert getattr(ours, key) == getattr(STAGE_2, key)
    assert ours == settings_of(script.SETTINGS, ["recipe=ours", "lr=1e-5"], schedules)
    for recipe in ("paper", "adversary"):
        other = settings_of(script.SETTINGS, [f"recipe={recipe}", "epochs=2"], schedules)
        assert (other.optimizer, other.lr, other.epochs) == ("adam", 1e-4, 2)
        assert other.adversary is not None and other.streak_weight == 0


def test_all_recipes_say_the_same_things() -> None:
    assert len({frozenset(recipe) for recipe in RECIPES.values()}) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipe=none"], "name one of"),
        (["recipe=paper", "recipe=paper"], "name one of"),
        (["recipe=paper", "resume=logs/train"], "keeps its recipe"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_recipe(train.SETTINGS, words, {})


def test_stage_one_has_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stage 2"):
        with_recipe(replace(Settings(), logs=tmp_path), ["recipe=paper"], {})
