"""Rates of every step, against what the sources write."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanlm.train import schedule
from leanlm.train.recipe import Change, Data, Model, Optimiser, Recipe, Schedule
from leanlm.train.schedule import factor, rates


def recipe(**settings) -> Recipe:
    return Recipe(
        "test",
        Model("rene", {"d_model": 1}),
        Data(source="x"),
        Optimiser(lr=2.0, weight_decay=0.1),
        replace(Schedule(steps=1000, warmup=0), **settings),
    )


@given(
    shape=st.sampled_from(["linear", "cosine", "constant", "wsd"]),
    steps=st.integers(1, 300),
    warmup=st.integers(0, 50),
    final=st.floats(0, 1),
    warmup_shape=st.sampled_from(["linear", "parabolic"]),
    cooldown=st.floats(0.01, 1),
)
def test_every_schedule_rises_to_the_peak_and_falls_to_the_end(shape, steps, warmup, final, warmup_shape, cooldown):
    cooldown = cooldown if shape in ("constant", "wsd") else 0.0
    made = Schedule(steps=steps, warmup=warmup, warmup_shape=warmup_shape, shape=shape, cooldown=cooldown, final=final)
    rise = [factor(step, steps, made) for step in range(warmup)]
    fall = [factor(step, steps, made) for step in range(warmup, steps + 1)]
    assert rise == sorted(rise) and (not rise or rise[-1] == 1)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(fall))
    assert all(0 <= factor <= 1 for factor in rise + fall)
    assert warmup >= steps or fall[-1] == pytest.approx(final)


def test_parabolic_warm_up_and_cosine_are_those_of_the_avengers():
    """fms-fsdp: 1 - (1 - min(x, w) / w)^2 going up; our step x counts from 1 there."""
    made = Schedule(steps=1000, warmup=100, warmup_shape="parabolic", shape="cosine", final=0.1)
    for x in (1, 50, 100):
        assert factor(x - 1, 1000, made) == pytest.approx(1 - (1 - x / 100) ** 2)
    assert factor(550, 1000, made) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi / 2)))


@pytest.mark.parametrize(("shape", "half_way"), [("constant", 0.5), ("wsd", 1 - math.sqrt(0.5))])
def test_the_cooldown_is_the_last_share_of_the_steps(shape, half_way):
    made = Schedule(steps=1000, warmup=10, shape=shape, cooldown=0.2)
    assert factor(10, 1000, made) == factor(800, 1000, made) == 1
    assert factor(900, 1000, made) == pytest.approx(half_way)
    assert factor(500, 1000, replace(made, shape="constant", cooldown=0.0)) == 1


def test_spectras_changes_of_peak_and_decay():
    """TriLM 99M: lr(t) = P(t) (1 - t / T) with P = 2.4e-3, from half of the steps on 1.5e-3; no decay after two thirds."""
    changes = (Change(0.5, lr=1.5e-3), Change(2 / 3, weight_decay=0.0))
    trilm = recipe(changes=changes)
    trilm = replace(trilm, optimiser=replace(trilm.optimiser, lr=2.4e-3))
    assert rates(499, trilm) == schedule.Rates(pytest.approx(2.4e-3 * 0.501), 0.1)
    assert rates(500, trilm) == schedule.Rates(pytest.approx(1.5e-3 * 0.5), 0.1)
    assert rates(666, trilm).weight_decay == 0.1 and rates(667, trilm).weight_decay == 0.0
    assert rates(999, trilm).lr == pytest.approx(1.5e-3 * 0.001)


def test_steps_follow_from_tokens():
    made = recipe(steps=0, tokens=10_000, batch=4)
    assert made.steps == math.ceil(10_000 / (4 * 512))
