"""Torch's flash kernel over packed documents: on a card, or stood in for by what its documentation says."""

import math

import operands
import pytest
import torch
from hypothesis import given, settings
from operands import TOLERANCE, agree, run

from leanlm.model.attention import Attention
from leanlm.model.config import Attention as Config
from leanlm.model.config import Rope
from leanlm.ops import dispatch, eager, reference

flash = pytest.importorskip("leanlm.ops.flash", exc_type=ImportError)
CARD = torch.cuda.is_available()


def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa):
    """Sequences one after the other, a query and its keys with as many places before and behind as `window_size` says."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and query.is_contiguous() and max_q == max_k
    assert enable_gqa == (query.shape[1] != key.shape[1])
    left, right = (math.inf if size < 0 else size for size in window_size)
    key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
    rows = []
    for begin, end in zip(cu_seq_q.tolist(), cu_seq_q[1:].tolist()):
        assert end - begin <= max_q
        for i in range(begin, end):
            seen = [j for j in range(begin, end) if i - left <= j <= i + right]
            weights = torch.softmax((query[i].float()[None] * key[seen].float()).sum(-1) * scale, 0)
            rows.append((weights[..., None] * value[seen].float()).sum(0))
    return torch.stack(rows).to(query.dtype)


@pytest.fixture
def kernel(monkeypatch):
    if not CARD:
        monkeypatch.setattr(flash, "varlen_attn", varlen_attn)
        monkeypatch.setattr(flash, "taken", lambda q: True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_documents_and_windows_agree_with_the_reference(kernel, dtype):
    @settings(max_examples=10, deadline=None, derandomize=True)
    @given(operands.packed_attend(dtype))
    def check(arguments):
        wanted, wanted_gradients = run(reference.packed_attend, arguments)
        there = {k: v.cuda() if CARD and isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        found, gradients = run(flash.packed_attend, there)
        agree(found[0].cpu(), wanted[0], TOLERANCE[torch.bfloat16], "y")
        for name, expected in wanted_gradients.items():
            agree(gradients[name].cpu(), expected, 5 * TOLERANCE[torch.bfloat16], name)

    check()


def test_a_layer_in_training_goes_through_it_where_the_table_says_so(kernel, monkeypatch):
    monkeypatch.setitem(dispatch.TABLE, ("packed_attend", "cpu"), ("flash",))
    monkeypatch.setattr(dispatch, "choose", dispatch.choose.__wrapped__)
    torch.manual_seed(0)
    layer, x = Attention(16, Config(4, 2, 8, window=5, rope=Rope(8))), torch.randn(2, 12, 16)
    layer.reset(0.3, 0.3)
    marks = torch.tensor([[0] * 4 + [1] * 8, [0] * 12])
    called, packed_attend = [], flash.packed_attend
    monkeypatch.setattr(flash, "packed_attend", lambda *given: called.append(1) or packed_attend(*given))
    found = layer(x, None, marks)
    assert called == [1]
    monkeypatch.delitem(dispatch.TABLE, ("packed_attend", "cpu"))
    torch.testing.assert_close(found, layer(x, None, marks), atol=1e-5, rtol=1e-4)


def test_what_the_kernel_does_not_take_is_left_to_plain_torch():
    for dtype, width in ((torch.float32, 8), (torch.bfloat16, 12), (torch.float16, 264)):
        assert not flash.fits(torch.zeros(1, 2, 3, width, dtype=dtype))
    for dtype, width in ((torch.bfloat16, 8), (torch.float16, 256)):
        here = torch.zeros(1, 2, 3, width, dtype=dtype)
        assert flash.fits(here) and not flash.taken(here)  # which lies on no card


@settings(max_examples=10, deadline=None, derandomize=True)
@given(operands.attend(torch.float32))
def test_shared_heads_made_their_own_give_the_same(arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eager, "_scores_would_be_held", lambda q, k, mask: True)
        agree(eager.attend(**arguments), reference.attend(**arguments), TOLERANCE[torch.float32], "y")
