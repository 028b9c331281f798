"""Memory in huge pages: tensors that do not know of each other, kept as long as they are used."""

import gc

import pytest
import torch

from leanlm.ops import pages
from leanlm.ops.pages import HUGE, LINE, SLAB, Arena


@pytest.fixture(params=[True, False], ids=["offered", "not offered"])
def arena(request, monkeypatch):
    if request.param and not pages.offered():
        pytest.skip("this system has no huge pages")
    monkeypatch.setattr(pages, "offered", lambda: request.param)
    return Arena(HUGE)


def test_tensors_lie_apart_and_hold_what_is_written(arena):
    shapes = [(3, 5), (), (0, 4), (1000, 1100), (7,)]
    made = [
        arena.zeros(shape, dtype) for shape in shapes for dtype in (torch.float32, torch.bfloat16, torch.uint8, torch.int64)
    ]
    assert all(not tensor.any() for tensor in made)
    for value, tensor in enumerate(made):
        tensor.fill_(value % 100)
    assert all((tensor == value % 100).all() for value, tensor in enumerate(made))
    assert not arena.huge or all(tensor.data_ptr() % LINE == 0 for tensor in made if tensor.numel())


def test_copies_are_independent_and_contiguous(arena):
    source = torch.randn(40, 30, requires_grad=True).t()
    copied = arena.copy(source)
    assert torch.equal(copied, source) and copied.is_contiguous() and not copied.requires_grad
    copied.zero_()
    assert source.detach().any()
    saved = torch.nn.Parameter(arena.copy(source))
    assert saved.untyped_storage().nbytes() == source.nbytes  # so that saving one writes no other


def test_a_tensor_outlives_its_arena_and_a_slab_its_size(arena):
    large = arena.zeros((SLAB + 3,), torch.uint8)
    kept = arena.zeros((5,), torch.float32).fill_(3)
    del arena, large
    gc.collect()
    assert kept.tolist() == [3] * 5


def test_little_memory_is_left_to_torch():
    assert not Arena(HUGE - 1).huge
