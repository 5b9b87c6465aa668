"""Learning rates and weights, step by step."""

from dataclasses import replace

import pytest

from banding_removal.config.settings import Settings
from banding_removal.training.schedule import (
    adversary_strength,
    learning_rate,
    penalty_weight,
    settings_of_step,
)


def test_the_learning_rate_drops_every_so_many_epochs_down_to_a_minimum() -> None:
    rates = [learning_rate(epoch, 1e-3, drop_every=3) for epoch in range(7)]
    assert rates == pytest.approx([1e-3] * 3 + [1e-4] * 3 + [1e-5])
    assert learning_rate(1000, 1e-3) == 1e-3
    assert learning_rate(1000, 1e-3, drop_every=3, minimum=1e-6) == 1e-6


def test_over_the_last_part_of_a_run_the_learning_rate_falls_to_zero() -> None:
    rates = [learning_rate(epochs, 1e-3, decay=0.4, total=10) for epochs in (0, 5.9, 6, 8, 9.5, 10)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 5e-4, 1.25e-4, 0])


def test_the_strength_grows_over_the_ramp() -> None:
    strengths = [adversary_strength(step, 6.0, ramp_steps=3) for step in (1, 2, 3, 4)]
    assert strengths == [2.0, 4.0, 6.0, 6.0]
    assert adversary_strength(1, 6.0, ramp_steps=0) == 6.0


def test_a_rarer_penalty_weighs_more() -> None:
    assert [penalty_weight(step, 0.5, every=3) for step in (1, 2, 3, 4)] == [1.5, 0.0, 0.0, 1.5]
    assert [penalty_weight(step, 0.5, every=1) for step in (1, 2)] == [0.5, 0.5]


def test_backing_off_lowers_rates_and_weights_against_banding_alone() -> None:
    settings = Settings(
        stage="train", adversary="simple", streak_weight=0.2, lr=1e-3, adversary_lr=1e-4
    )
    full = settings_of_step(settings, epochs=0, step=1)
    gentle = settings_of_step(settings, epochs=0, step=1, backoff_factor=0.5)
    assert gentle == replace(
        full, lr=5e-4, adversary_lr=5e-5, streak_weight=0.1, orientation_weight=0.5
    )


def test_the_adversary_joins_in_the_epochs_that_the_settings_name() -> None:
    settings = Settings(
        stage="train", adversary="simple", adversary_from_epoch=2, adversary_term_from_epoch=3
    )
    steps = [settings_of_step(settings, epochs=epochs, step=1) for epochs in (0, 1, 1.9, 2)]
    assert [step.trains_adversary for step in steps] == [False, True, True, True]
    assert [step.uses_adversary for step in steps] == [False, False, False, True]
    alone = settings_of_step(replace(settings, adversary=None), epochs=5, step=1)
    assert not alone.trains_adversary and not alone.uses_adversary
