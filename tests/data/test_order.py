"""Permutations and turns."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanlm.data.order import PERIOD, Interleaving, permuted
from leanlm.errors import UsageError


@given(count=st.integers(1, 3000), key=st.text(max_size=5))
@settings(max_examples=80, deadline=None)
def test_permuted_is_a_permutation(count, key):
    assert sorted(permuted(np.arange(count), count, key)) == list(range(count))


def test_places_far_out_stay_inside():
    count = 10**13 + 7
    places = np.random.default_rng(0).integers(0, count, 1000)
    found = permuted(places, count, "k")
    assert found.min() >= 0 and found.max() < count and len(set(found.tolist())) == len(set(places.tolist()))


def test_order_depends_on_the_key_and_mixes():
    first, other = (permuted(np.arange(1000), 1000, key) for key in ("1/0", "1/1"))
    assert (first != other).mean() > 0.9
    assert abs(np.corrcoef(np.arange(1000), first)[0, 1]) < 0.1
    assert (np.diff(first) == 1).mean() < 0.02  # neighbours do not stay neighbours


WEIGHTS = st.lists(st.integers(1, 60), min_size=1, max_size=6)


@given(weights=WEIGHTS)
@settings(max_examples=80, deadline=None)
def test_every_prefix_has_its_shares(weights):
    turns = Interleaving(weights)
    total, n = sum(weights), 2 * turns.period + 3
    sources, ranks = turns(np.arange(n))
    had = [0] * len(weights)
    for turn, (source, rank) in enumerate(zip(sources, ranks)):
        assert turns.counts(turn) == tuple(had) if turn % 7 == 0 else True
        assert rank == had[source]
        had[source] += 1
        for i, weight in enumerate(weights):
            assert abs(had[i] - Fraction((turn + 1) * weight, total)) < 1


def test_written_decimals_are_exact():
    assert Interleaving([0.7, 0.2, 0.1]).shares == (Fraction(7, 10), Fraction(1, 5), Fraction(1, 10))
    assert Interleaving([3, 1]).period == 4


def test_weights_without_a_small_denominator_are_rounded():
    weights = [0.3333333333333333, 0.12345678901, 0.5]
    turns = Interleaving(weights)
    assert turns.period <= PERIOD
    assert all(abs(share - weight / sum(weights)) < 2 / PERIOD for share, weight in zip(turns.shares, weights))
    with pytest.raises(UsageError, match="leave the source out"):
        Interleaving([1.0000001, 1e-9])


@pytest.mark.parametrize("weights", [[], [0.0, 1.0], [-1.0], [float("nan")], [float("inf")]])
def test_weights_that_are_none(weights):
    with pytest.raises(UsageError, match=r"source"):
        Interleaving(weights)
