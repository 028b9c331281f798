"""State: bounded, copied, selected, written, moved, and never half-updated."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_models import ONE_OF_EACH, alone, build, hybrids, text
from leanlm.errors import CapacityError, LeanLMError, UsageError
from leanlm.model.config import MLP, Attention, Mamba1, Mamba2, ModelConfig

BOUNDED = {name: mixer for name, mixer in ONE_OF_EACH.items() if alone(mixer).bounded}
MIXED = ModelConfig(
    16, 20, ((Mamba1(20, 3),), (Attention(2, 1, 8),), (MLP(8), Attention(2, 2, 4, window=5)), (Mamba2(12, 4, 3),))
)


def copy(state):
    return {name: tensor.clone() for name, tensor in state.tensors().items()}


def unchanged(state, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in state.tensors().items())


@pytest.mark.parametrize("name", BOUNDED)
@torch.no_grad()
def test_a_bounded_state_never_grows(name):
    model = build(alone(BOUNDED[name]))
    state = model.new_state(2)
    sizes = state.nbytes, {n: t.shape for n, t in state.tensors().items()}
    for length in (1, 3, 200, 1, 500):  # far over the context length
        model(text(model.config, 2, length), state)
    assert (state.nbytes, {n: t.shape for n, t in state.tensors().items()}) == sizes
    assert state.position.tolist() == [705, 705]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(hybrids(), st.integers(1, 3))
def test_nbytes_is_the_size_of_its_tensors_per_row(config, batch):
    model = build(config)
    state = model.new_state(batch)
    assert state.nbytes == sum(t.nbytes for n, t in state.tensors().items() if n != "position")
    assert state.nbytes == batch * model.new_state(1).nbytes
    model(text(config, batch, 7), state)
    assert state.nbytes == batch * model.new_state(1).nbytes


@pytest.mark.parametrize("mixer", ["attention with rope", "window of 7 with conv", "window longer than the text"])
@torch.no_grad()
def test_keys_and_values_in_eight_bits(mixer):
    """Near the exact ones; half of 16 bits and their scales; however a text is cut, the same."""
    model = build(alone(ONE_OF_EACH[mixer]))
    ids = text(model.config, 2, 30)
    whole, cut = (model.new_state(2, cache_dtype=torch.int8) for _ in range(2))
    logits = model(ids, whole)
    pieces = torch.cat([model(piece, cut) for piece in ids.split([1, 8, 1, 20], 1)], 1)
    exact = model(ids)
    assert 0 < (logits - exact).abs().max() <= 0.05 * exact.abs().max()
    assert (pieces - logits).abs().max() <= 5e-3 * logits.abs().max()
    memory = whole.memories[0]
    assert memory["k"].dtype == memory["v"].dtype == torch.int8 == whole.cache_dtype
    assert memory["k_scale"].shape == memory["v"].shape[:3]
    assert memory["k"].abs().max() == 127


def test_what_new_states_are_held_in():
    model = build(MIXED)
    model.state_dtype, model.cache_dtype = torch.bfloat16, torch.int8
    dtypes = {name.partition(".")[2]: tensor.dtype for name, tensor in model.new_state(1).tensors().items()}
    assert dtypes["ssm"] == torch.bfloat16 and dtypes["k"] == torch.int8 and dtypes["conv"] == torch.float32
    assert model.new_state(1, dtype=torch.float32).cache_dtype == torch.float32
    assert model.new_state(1, cache_dtype=torch.float16).cache_dtype == torch.float16


@torch.no_grad()
def test_a_clone_is_independent_and_continues_alike():
    model = build(MIXED)
    state = model.new_state(2, capacity=50)
    model(text(MIXED, 2, 9), state)
    fork, before = state.clone(), copy(state)
    more = text(MIXED, 2, 6, 1)
    first = model(more, fork)
    assert unchanged(state, before)
    assert torch.equal(model(more, state), first)


@torch.no_grad()
def test_selected_rows_are_copies_in_the_order_asked_for():
    model = build(MIXED)
    state = model.new_state(3, capacity=50)
    model(text(MIXED, 3, 9), state)
    before = copy(state)
    chosen = state.select([2, 0, 2])
    for name, tensor in chosen.tensors().items():
        assert torch.equal(tensor, before[name][[2, 0, 2]]), name
    model(text(MIXED, 3, 4, 1), chosen)
    assert unchanged(state, before)


@torch.no_grad()
def test_written_rows_replace_only_themselves():
    model = build(MIXED)
    state, other = model.new_state(3, capacity=50), model.new_state(2, capacity=50)
    model(text(MIXED, 3, 9), state)
    model(text(MIXED, 2, 4, 1), other)
    before = copy(state)
    state.write([2, 0], other)
    for name, tensor in state.tensors().items():
        assert torch.equal(tensor[[2, 0]], other.tensors()[name]) and torch.equal(tensor[1], before[name][1]), name
    assert state.position.tolist() == [4, 9, 4]


@pytest.mark.parametrize("pieces", [[12], [11, 1], [5, 7], [1] * 12])
@torch.no_grad()
def test_capacity_is_usable_to_its_end_and_an_overrun_writes_nothing(pieces):
    model = build(MIXED)  # a Mamba-1 runs before the attention that has no room
    state = model.new_state(2, capacity=12)
    for length in pieces:
        model(text(MIXED, 2, length), state)
    before = copy(state)
    for length in (1, 5):
        with pytest.raises(CapacityError, match=r"holds 12 tokens .* and 1[37] are needed: .*capacity="):
            model(text(MIXED, 2, length), state)
        assert unchanged(state, before)
    fresh = model.new_state(2, capacity=12)
    with pytest.raises(CapacityError):
        model(text(MIXED, 2, 13), fresh)
    assert unchanged(fresh, copy(model.new_state(2, capacity=12)))


@torch.no_grad()
def test_one_full_row_stops_the_batch():
    model = build(MIXED)
    state = model.new_state(2, capacity=12)
    full = model.new_state(1, capacity=12)
    model(text(MIXED, 1, 12), full)
    state.write([1], full)
    with pytest.raises(CapacityError):
        model(text(MIXED, 2, 1), state)


@torch.no_grad()
def test_tokens_for_another_batch_are_refused_before_anything_is_written():
    model = build(MIXED)
    state = model.new_state(2, capacity=12)
    for batch in (1, 3):
        with pytest.raises(UsageError, match=f"the state holds 2 texts and tokens of {batch} were given"):
            model(text(MIXED, batch, 4), state)
    assert unchanged(state, copy(model.new_state(2, capacity=12)))


@torch.no_grad()
def test_an_unknown_token_writes_nothing():
    model = build(MIXED)
    state = model.new_state(1, capacity=12)
    with pytest.raises((IndexError, LeanLMError)):
        model(torch.tensor([[1, 20]]), state)
    assert unchanged(state, copy(model.new_state(1, capacity=12)))


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_state_may_be_kept_in_another_dtype(weights, kept):
    model = build(MIXED, dtype=weights)
    state, exact = model.new_state(2, capacity=50, dtype=kept), model.new_state(2, capacity=50)
    floating = {n: t for n, t in state.tensors().items() if t.is_floating_point()}
    assert all(t.dtype == (weights if n.endswith("conv") else kept) for n, t in floating.items())
    tokens = text(MIXED, 2, 40)
    for piece in tokens.split([9, 1, 30], 1):
        found, wanted = model(piece, state), model(piece, exact)
        assert found.dtype == wanted.dtype
        assert (found - wanted).abs().max() <= 0.05 * wanted.abs().max()
    assert all(t.dtype == floating[n].dtype for n, t in state.tensors().items() if n in floating)


def test_recurrent_state_is_float32_unless_asked_otherwise():
    tensors = build(MIXED, dtype=torch.bfloat16).new_state(1, capacity=4).tensors()
    assert {t.dtype for n, t in tensors.items() if n.endswith("ssm")} == {torch.float32}
    assert {t.dtype for n, t in tensors.items() if n.endswith((".k", ".v", ".conv"))} == {torch.bfloat16}


def test_room_for_full_attention_is_the_context_length_unless_given():
    config = ModelConfig(8, 9, ((Attention(1, 1, 8),),), context_length=33)
    for asked, slots in ((None, 33), (5, 5)):
        assert build(config).new_state(1, capacity=asked).memories[0]["k"].shape[1] == slots


def test_a_moved_state_keeps_its_positions_on_the_cpu():
    moved = build(MIXED).new_state(2, capacity=5).to("meta")
    assert moved.position.device.type == "cpu"
    assert {t.device.type for t in moved.tensors().values() if t.is_floating_point()} == {"meta"}


def test_a_moved_state_shares_nothing():
    state = build(MIXED).new_state(2, capacity=5)
    moved = state.to("cpu")
    assert not {t.data_ptr() for t in state.tensors().values()} & {t.data_ptr() for t in moved.tensors().values()}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@torch.no_grad()
def test_a_state_moves_to_the_gpu_and_back_without_losing_a_bit():
    state = build(MIXED).new_state(2, capacity=50)
    build(MIXED)(text(MIXED, 2, 9), state)
    assert unchanged(state.to("cuda").to("cpu"), copy(state))
