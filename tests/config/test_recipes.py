from pathlib import Path
from types import ModuleType

import pytest

from banding_removal.command_line import settings_of
from banding_removal.config.demo import STAGE_2
from banding_removal.config.recipes import PUBLISHED, RECIPES
from banding_removal.config.settings import Recipe, Settings
from banding_removal.errors import ConfigError
from banding_removal.evaluation.comparison import CompareSettings
from scripts import demo, pretrain, train, train_dev

SCHEDULES = {"direct": {"epoch_fraction": 0.2}, "paper": PUBLISHED}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_word_that_others_may_change(name: Recipe) -> None:
    settings = settings_of(STAGE_2, [f"recipe={name}", "adversary_strength=7", "lr=1e-5"])
    assert settings.adversary_strength == 7
    assert settings.lr == 1e-5
    assert settings.recipe == name
    for key, value in RECIPES[name].items():
        if key != "adversary_strength":
            assert getattr(settings, key) == value
    assert settings.epochs == STAGE_2.epochs


def test_a_word_is_checked_against_the_recipe_and_not_against_the_script() -> None:
    assert not pretrain.SETTINGS.paired  # which adversary_replay needs
    words = ["stage=train", "adversary_replay=20", "recipe=adversary"]
    settings = settings_of(pretrain.SETTINGS, words)
    assert settings.adversary_replay == 20


def test_the_paper_s_recipe_is_what_was_published() -> None:
    settings = settings_of(train.SETTINGS, ["recipe=paper"], {"paper": PUBLISHED})
    published = Settings(
        stage="train",
        recipe="paper",
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
def test_scripts_train_with_an_adversary_and_the_paper_at_its_own_rates(
    script: ModuleType,
) -> None:
    pairs = settings_of(script.SETTINGS, ["lr=1e-5"], SCHEDULES)
    assert pairs.lr == 1e-5
    for key in (*RECIPES["adversary"], "optimizer", "lr_decay", "lr_drop_every", "clip_grad_norm"):
        assert getattr(pairs, key) == getattr(STAGE_2, key)  # as in the results
    assert pairs == settings_of(script.SETTINGS, ["recipe=adversary", "lr=1e-5"], SCHEDULES)
    paper = settings_of(script.SETTINGS, ["recipe=paper", "epochs=2"], SCHEDULES)
    assert (paper.optimizer, paper.lr, paper.epochs) == ("adam", 1e-4, 2)
    assert paper.adversary == "shallow" and paper.streak_weight == 0
    direct = settings_of(script.SETTINGS, ["recipe=direct"], SCHEDULES)
    assert direct.adversary is None and 0 < pairs.streak_weight < direct.streak_weight
    assert direct.lr == script.SETTINGS.lr
    # half as many orientations in a step
    assert 2 * pairs.epochs * pairs.epoch_fraction == direct.epochs * direct.epoch_fraction


def test_all_recipes_set_the_same_settings() -> None:
    assert len({frozenset(recipe) for recipe in RECIPES.values()}) == 1


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        (train, ["recipe=papers"], "expected one of"),
        (train, ["recipe=paper", "resume=logs/train"], "a resumed run keeps its recipe"),
        (train, ["init_from=a", "resume=logs/train"], "a resumed run keeps its init_from"),
        (train, ["stage=pretrain"], "need stage=train"),
        (pretrain, ["recipe=paper"], "need stage=train"),
        (pretrain, ["streak_weight=0.1"], "need stage=train"),
        (pretrain, ["adversary=simple"], "need stage=train"),
    ],
)
def test_contradictions_are_refused(script: ModuleType, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_of(script.SETTINGS, words)


def test_a_recipe_may_be_trained_from_random_weights(tmp_path: Path) -> None:
    words = ["stage=train", "recipe=paper", f"logs={tmp_path}"]
    settings = settings_of(pretrain.SETTINGS, words)
    assert settings.adversary == "shallow" and settings.init_from is None


def test_words_of_the_demo_reach_the_stages_that_they_are_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Settings] = []

    def noted(settings: Settings) -> Path:
        trained.append(settings)
        return tmp_path

    def enough(_settings: CompareSettings) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_run", noted)
    monkeypatch.setattr(demo, "compare", enough)
    words = [f"data_path={tmp_path}", "recipe=direct", "streak_weight=0.1", "epochs=3"]
    with pytest.raises(KeyboardInterrupt):
        demo.main(words)
    first, second = trained
    assert (first.stage, first.recipe, first.streak_weight) == ("pretrain", "none", 0)
    assert (second.stage, second.recipe, second.streak_weight) == ("train", "direct", 0.1)
    assert second.init_from == str(tmp_path)
    assert (second.lr, second.epoch_fraction) == (first.lr, 1.0)
    assert first.epochs == second.epochs == 3
    with pytest.raises(ConfigError, match="the demo sets"):
        demo.main(["init_from=logs/pretrain"])
