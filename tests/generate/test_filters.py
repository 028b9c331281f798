"""The distribution a token is drawn from, against definitions written out; the golden cases are in test_golden."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanlm.generate import filters
from leanlm.generate.sampling import Sampling

rows = st.lists(st.floats(-6, 6, width=32), min_size=2, max_size=12)


def definition(logits: list[float], seen: set[int], s: Sampling) -> list[float]:
    """Penalty, temperature, top-k, top-p and min-p on Python floats."""
    logits = [
        (x * s.repetition_penalty if x < 0 else x / s.repetition_penalty) if i in seen else x for i, x in enumerate(logits)
    ]
    weights = [math.exp(x / s.temperature) for x in logits]
    order = sorted(range(len(weights)), key=lambda i: -weights[i])
    if s.top_k:
        bound = weights[order[: s.top_k][-1]]
        weights = [w if w >= bound else 0.0 for w in weights]
    if 0 < s.top_p < 1:
        total, held = sum(weights), 0.0
        for i in order:
            if held >= s.top_p * total and held > 0:
                weights[i] = 0.0
            held += weights[i]
    weights = [w if w >= s.min_p * max(weights) else 0.0 for w in weights]
    return [w / sum(weights) for w in weights]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows.filter(lambda row: len({round(x, 3) for x in row}) == len(row)),
    st.sets(st.integers(0, 11)),
    st.builds(
        Sampling,
        temperature=st.sampled_from([0.5, 1.0, 1.7]),
        top_k=st.integers(2, 15) | st.just(0),
        top_p=st.sampled_from([1.0, 0.83, 0.41]),
        min_p=st.sampled_from([0.0, 0.07, 0.5]),
        repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
        do_sample=st.just(True),
    ),
)
def test_filters_follow_their_definitions(row, seen, sampling):
    marked = filters.mark([sorted(i for i in seen if i < len(row))], len(row))
    found = filters.probabilities(torch.tensor([row]), marked, sampling)[0]
    torch.testing.assert_close(found, torch.tensor(definition(row, seen, sampling)), atol=1e-5, rtol=0)


def test_greedy_takes_the_penalised_maximum():
    logits, seen = torch.tensor([[2.0, 1.9, -1.0]]), filters.mark([[0]], 3)
    generators = [torch.Generator()]
    assert filters.choose(logits, seen, Sampling(), generators) == [0]
    assert filters.choose(logits, seen, Sampling(repetition_penalty=1.5), generators) == [1]
    assert filters.probabilities(logits, seen, Sampling(repetition_penalty=1.5)).tolist() == [[0.0, 1.0, 0.0]]


def test_a_token_is_penalised_once_however_often_it_occurs():
    once, often = (filters.mark([ids], 4) for ids in ([1], [1] * 9 + [99]))
    assert torch.equal(once, often)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=9).filter(any), st.floats(0, 1, exclude_max=True))
def test_draw_inverts_the_cumulated_distribution_and_never_takes_an_impossible_token(weights, number):
    distribution = torch.tensor([weights], dtype=torch.float32) / sum(weights)
    token = int(filters.draw(distribution, torch.tensor([number], dtype=torch.float64)))
    assert weights[token] > 0
    assert sum(weights[:token]) <= number * sum(weights) + 1e-6
    assert number * sum(weights) <= sum(weights[: token + 1]) + 1e-6


def test_frequencies_are_the_probabilities():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).expand(4000, 4)
    sampling = Sampling(temperature=0.8, top_k=3)
    generators = [torch.Generator().manual_seed(i) for i in range(4000)]
    counts = torch.bincount(torch.tensor(filters.choose(logits, None, sampling, generators)), minlength=4) / 4000
    torch.testing.assert_close(counts, filters.probabilities(logits[:1], None, sampling)[0], atol=0.03, rtol=0)


@pytest.mark.parametrize("first, kept", [(2.0, [0, 2]), (9.0, [0, 1, 2]), (-1.0, [0, 1, 2])])
def test_mamba_ssm_min_p_bounds_raw_logits_by_token_zero(first, kept):
    """With min_p 0.4 the bound is 0.8 for a first logit of 2; outside 0 .. 1 nothing is filtered."""
    sampling = Sampling(min_p=0.4, top_p=0.1, compat="mamba_ssm")
    found = filters.probabilities(torch.tensor([[first, 0.5, 1.0]]), None, sampling)[0]
    assert found.nonzero().flatten().tolist() == kept


@pytest.mark.parametrize("extreme", [{"temperature": 1e-40}, {"repetition_penalty": 1e-38}, {"temperature": 1e30}])
def test_extreme_settings_still_give_a_distribution(extreme):
    logits, seen = torch.randn(3, 20) * 10, torch.rand(3, 20) < 0.5
    kept = filters.probabilities(logits, seen, Sampling(do_sample=True, **extreme))
    assert torch.isfinite(kept).all()
    torch.testing.assert_close(kept.sum(-1), torch.ones(3))


@pytest.mark.parametrize("given", [{}, {"temperature": 0.7, "top_p": 0.8}, {"top_k": 3}, {"repetition_penalty": 1.7}])
def test_choosing_on_a_device_gives_the_same_tokens_and_marks_rows_that_are_not_finite(given):
    sampling, generator = Sampling.of(**given), torch.Generator().manual_seed(0)
    logits, seen = torch.randn(5, 40, generator=generator), torch.rand(5, 40, generator=generator) < 0.3
    numbers = torch.stack([torch.rand((), generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(5)])
    wanted = filters.choose(logits, seen, sampling, [torch.Generator().manual_seed(i) for i in range(5)])
    assert filters.on_device(logits, seen, sampling, numbers).tolist() == wanted
    logits[1, 7], logits[3, 0] = math.nan, math.inf
    found = filters.on_device(logits, seen, sampling, numbers).tolist()
    assert [found[1], found[3]] == [filters.NOT_FINITE] * 2
    assert [found[i] for i in (0, 2, 4)] == [wanted[i] for i in (0, 2, 4)]


@pytest.mark.parametrize("compat", ["", "mamba_ssm"])
@pytest.mark.parametrize("given", [{}, {"temperature": 0.7, "top_p": 0.8}, {"top_k": 3, "min_p": 0.1}, {"min_p": 0.2}])
def test_choosing_on_a_device_waits_for_no_number(given, compat):
    """Torch's meta device has none, and fails where one is asked for."""
    logits, seen = torch.zeros(3, 40, device="meta"), torch.zeros(3, 40, dtype=torch.bool, device="meta")
    numbers = torch.zeros(3, dtype=torch.float64, device="meta")
    sampling = Sampling.of(**given, repetition_penalty=1.2, compat=compat)
    assert filters.on_device(logits, seen, sampling, numbers).device.type == "meta"
