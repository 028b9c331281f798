"""Telescoping attention in blocks against the reference, which moves slots about token by token: values, caches, gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanlm.ops import merging, reference
from leanlm.ops.merging import Cache, Reading
from leanlm.slots import BLOCK, NAMED, Table

FLAG = st.booleans()
LENGTHS = st.integers(1, 2 * BLOCK + 3)


@st.composite
def calls(draw):
    """Arguments of the operation: texts whose documents begin before or in the call, after some tokens that made the cache."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size = draw(st.integers(3, 20))
    table = Table(size, tuple(sorted(draw(st.sets(st.integers(2, size - 1), min_size=1, max_size=4)))))
    B, L, G, P, Q = (
        draw(st.integers(1, 2)),
        draw(LENGTHS),
        draw(st.integers(1, 2)),
        draw(st.integers(4, 7)),
        draw(st.integers(4, 7)),
    )
    H = G * draw(st.integers(1, 3))
    factor = draw(st.sampled_from((None, None, 0.5, 0.7)))
    norms = [1 + 0.3 * torch.randn(width, generator=generator) if draw(FLAG) else None for width in (P, Q)]
    reading = Reading(table, 0.4, factor, *norms, 1e-6, draw(FLAG), draw(st.none() | st.just(3.0)), draw(FLAG))
    apart = factor is None and draw(FLAG)

    def tokens(batch, length):
        k, v = (torch.randn(batch, length, G, width, generator=generator) for width in (P, Q))
        weights = [torch.randn(batch, length, G, generator=generator) for _ in range(2)]
        return k, v, weights[0], weights[1] if apart else None

    before = draw(st.lists(st.integers(0, 40), min_size=B, max_size=B))
    held = [made(tokens(1, n), table, reading) if n else empty(1, table, G, P, Q, apart) for n in before]
    cache = Cache(*(None if part[0] is None else torch.cat(part) for part in zip(*held)))
    q = torch.randn(B, L, H, P, generator=generator)
    segments = None
    if draw(FLAG):
        segments = (torch.rand(B, L, generator=generator) < 0.05).long().cumsum(1)
    return q, *tokens(B, L), cache, before, segments, reading


def empty(batch: int, table: Table, G: int, P: int, Q: int, apart: bool) -> Cache:
    weights = [torch.full((batch, table.size, G), -math.inf) for _ in range(2)]
    return Cache(
        torch.zeros(batch, table.size, G, P), torch.zeros(batch, table.size, G, Q), weights[0], weights[1] if apart else None
    )


def made(new, table: Table, reading: Reading) -> Cache:
    """The cache that tokens leave."""
    k, v, _, weight_v = new
    nothing = empty(len(k), table, k.shape[2], k.shape[3], v.shape[3], weight_v is not None)
    q = torch.zeros(*k.shape[:2], k.shape[2], k.shape[3])
    return reference.telescope(q, *new, nothing, [0] * len(k), None, reading)[1]


def run(implementation, arguments):
    """Outputs, and gradients of all that is new."""
    q, k, v, weight_k, weight_v, cache, read, segments, reading = arguments
    new = [None if t is None else t.clone().requires_grad_() for t in (q, k, v, weight_k, weight_v)]
    y, cache = implementation(*new, cache, read, segments, reading)
    generator = torch.Generator().manual_seed(0)
    outputs = [y, cache.k, cache.v]
    (sum((t * torch.randn(t.shape, generator=generator)).sum() for t in outputs)).backward()
    gradients = [None if t is None else torch.zeros_like(t) if t.grad is None else t.grad for t in new]
    return [t.detach() for t in (*outputs, *cache[2:]) if t is not None], [g for g in gradients if g is not None]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(calls())
def test_it_agrees_with_the_reference(arguments):
    before = [t.clone() for t in arguments[5] if t is not None]
    for found, wanted in zip(run(merging.telescope, arguments), run(reference.telescope, arguments), strict=True):
        for mine, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=3e-5)
    assert all(map(torch.equal, [t for t in arguments[5] if t is not None], before)), "the cache given was changed"


def test_memory_is_linear_in_the_length():
    """Rows of the bank and rows that the blocks look at, for each token."""
    for table in NAMED.values():
        for length in (2048, 8192):
            plan = merging.plan_on(torch.device("cpu"), table, (((0, length),),))
            assert plan.rows.shape[1] * plan.rows.shape[2] / length <= (table.size + 2 * BLOCK) / BLOCK
            assert sum(rows.shape[1] for rows in plan.older) < length


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    torch.manual_seed(0)
    k, v = torch.randn(2, 90, 2, 4, dtype=dtype), torch.randn(2, 90, 2, 4, dtype=dtype)
    weights, q = torch.randn(2, 90, 2, dtype=torch.promote_types(dtype, torch.float32)), torch.randn(2, 90, 4, 4, dtype=dtype)
    reading = Reading(Table(8, (2, 4, 6)), 0.5)
    cache = Cache(*(None if t is None else t.to(weights.dtype) for t in empty(2, reading.table, 2, 4, 4, False)))
    arguments = q, k, v, weights, None, cache, [0, 0], None, reading
    found, wanted = merging.telescope(*arguments), reference.telescope(*arguments)
    assert found[0].dtype == dtype and found[1].k.dtype == weights.dtype
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=1e-12 if dtype == torch.float64 else 2e-2)


def test_what_is_remembered_of_inference_can_be_trained_with():
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randn(1, 70, 1, 4, generator=generator) for _ in range(2))
    weights, reading = torch.zeros(1, 70, 1), Reading(Table(7, (2, 4)), 0.5)
    nothing = empty(1, reading.table, 1, 4, 4, False)
    merging.plan_on.cache_clear()
    with torch.inference_mode():
        merging.telescope(k, k, v, weights, None, nothing, [0], None, reading)
    q = k.clone().requires_grad_()
    merging.telescope(q, k, v, weights, None, nothing, [0], None, reading)[0].sum().backward()
    assert q.grad.abs().sum() > 0


def test_no_texts():
    q, k, reading = torch.zeros(0, 3, 2, 4), torch.zeros(0, 3, 1, 4), Reading(Table(7, (2, 4)), 0.5)
    y, _ = merging.telescope(q, k, k, torch.zeros(0, 3, 1), None, empty(0, reading.table, 1, 4, 4, False), [], None, reading)
    assert y.shape == (0, 3, 2, 4)
