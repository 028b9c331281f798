"""Recurrent memories in 8 bits: what is held, how far it is from the exact memory, and all that is done with a state."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from golden_cases import checkpoint_cases
from hybrid_models import ONE_OF_EACH, alone, build, text
from leanlm import runtime
from leanlm.checkpoint import state_file
from leanlm.checkpoint.load import load_module
from leanlm.errors import UsageError
from leanlm.generate.session import with_room
from leanlm.model.config import MLP, Attention, Mamba2, ModelConfig, Telescoping
from leanlm.model.state import blank, quantised, recall, remember

RECURRENT = {name: mixer for name, mixer in ONE_OF_EACH.items() if not isinstance(mixer, Attention)}
CASES = {case.name: case for case in checkpoint_cases()}
MIXED = ModelConfig(16, 20, ((Mamba2(24, 4, 8),), (MLP(8), Attention(2, 2, 4)), (Telescoping(2, 1, 6, 9, (3, 5)),)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**20), st.integers(1, 70), st.floats(1e-8, 1e8), st.floats(0, 0.9))
def test_rounding_errs_by_half_a_step_at_most_and_once(seed, width, size, empty):
    generator = torch.Generator().manual_seed(seed)
    x = size * torch.randn(3, 4, width, generator=generator) * (torch.rand(3, 4, 1, generator=generator) >= empty)
    codes, scales = quantised(x)
    values = codes * scales[..., None]
    assert ((values - x).abs() <= scales[..., None] * 0.5001).all()
    assert torch.equal(scales, x.abs().amax(-1) / 127) and (codes.abs().amax(-1) == 127 * (scales > 0)).all()
    for fading in (1, 0.9, 0.999):  # a row that only fades loses nothing more
        assert torch.equal(quantised(fading * values)[0], codes)


def test_what_is_not_finite_stays_so():
    memory = blank("ssm", (1, 2, 3), "cpu", torch.int8)
    remember(memory, "ssm", torch.tensor([[[1.0, torch.nan, 2], [0, 1, torch.inf]]]))
    assert not torch.isfinite(recall(memory, "ssm")).any(-1).any()


@pytest.mark.parametrize("name", RECURRENT)
@torch.no_grad()
def test_codes_and_scales_of_every_mixer(name):
    """As near the exact memory as the steps of its rows say, however many calls wrote it."""
    model = build(alone(RECURRENT[name]))
    ids = text(model.config, 2, 60)
    coded, exact = model.new_state(2, dtype=torch.int8), model.new_state(2)
    for piece in ids.split([25, 1, 1, 33], 1):
        found, wanted = model(piece, coded), model(piece, exact)
    assert 0 < (found - wanted).abs().max() <= 0.1 * wanted.abs().max()
    assert coded.dtype == torch.int8 and exact.dtype == torch.float32
    for i, memory in enumerate(coded.memories):
        for part in (part for part, tensor in (memory or {}).items() if tensor.dtype == torch.int8):
            assert memory[f"{part}_scale"].shape == memory[part].shape[:-1]
            assert memory[part].abs().max() == 127
            off = (recall(memory, part) - exact.memories[i][part]).abs().max()
            assert 0 < off <= 0.1 * exact.memories[i][part].abs().max(), part


def test_bytes_are_those_of_codes_and_scales():
    model = build(ModelConfig(16, 20, ((Mamba2(64, 16, 64),),)))
    exact, coded = (model.new_state(3, dtype=dtype) for dtype in (None, torch.int8))
    assert coded.nbytes == sum(t.nbytes for n, t in coded.tensors().items() if n != "position")
    tail = coded.memories[0]["conv"].nbytes
    assert (coded.nbytes - tail) / (exact.nbytes - tail) == (64 + 4) / (4 * 64)


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith(("rene", "mamba", "llamba"))])
@torch.no_grad()
def test_golden_models_stay_near(case):
    module = load_module(CASES[case].folder).module.float()
    ids = text(module.config, 2, 30)
    exact, near = module.new_state(2), module.new_state(2, dtype=torch.int8, cache_dtype=torch.float32)
    wanted = torch.cat([module(piece, exact) for piece in ids.split(5, 1)], 1)
    found = torch.cat([module(piece, near) for piece in ids.split(5, 1)], 1)
    assert torch.equal(found[:, :5], wanted[:, :5])  # the first call reads no codes
    assert (found - wanted).abs().mean() <= 0.01 * wanted.abs().max()


@torch.no_grad()
def test_rows_do_not_touch_each_other():
    model = build(MIXED)
    model.state_dtype = model.cache_dtype = torch.int8
    ids = text(MIXED, 3, 20)
    together, apart = model.new_state(3, capacity=40), [model.new_state(1, capacity=40) for _ in range(3)]
    model(ids * torch.tensor([[1], [0], [1]]), together)  # a row of zeros beside the others
    for row in (0, 2):
        model(ids[row : row + 1], apart[row])
        for name, tensor in apart[row].tensors().items():
            off = (together.tensors()[name][row].double() - tensor[0].double()).abs().max()
            assert off <= (1 if tensor.dtype == torch.int8 else 1e-5), name


@torch.no_grad()
def test_forks_rows_and_room():
    model = build(MIXED)
    state, written = (model.new_state(2, 40, torch.int8) for _ in range(2))
    model(text(MIXED, 2, 9), state)
    fork, turned, roomy, more = state.clone(), state.select([1, 0]), with_room(model, state, 41), text(MIXED, 2, 5, 1)
    written.write([0, 1], state)
    assert roomy is not state and roomy.dtype == torch.int8
    wanted = model(more, state)
    assert torch.equal(model(more, fork), wanted) and torch.equal(model(more, written), wanted)
    assert torch.equal(model(more, roomy), wanted)
    assert torch.allclose(model(more.flip(0), turned).flip(0), wanted, atol=1e-4)


@torch.no_grad()
def test_rows_held_otherwise_are_refused():
    model = build(MIXED)
    exact, coded = model.new_state(2, 9), model.new_state(2, 9, torch.int8)
    for mine, theirs in ((exact, coded), (coded, exact)):
        before = mine.clone()
        with pytest.raises(UsageError, match="held in int8 and the other is not"):
            mine.write([0], theirs.select([1]))
        assert all(torch.equal(t, before.tensors()[n]) for n, t in mine.tensors().items())


@pytest.mark.parametrize("own", [None, torch.int8])
@pytest.mark.parametrize(
    "dtypes", [(torch.int8, torch.int8), (torch.int8, torch.float32), (torch.bfloat16, torch.int8), (None,)]
)
@torch.no_grad()
def test_a_file_gives_back_what_was_saved_whatever_the_model_does_by_itself(dtypes, own, tmp_path):
    model = build(MIXED)
    state = model.new_state(2, 40, *dtypes)
    model(text(MIXED, 2, 9), state)
    state_file.write(tmp_path / "a.state", model, state)
    model.state_dtype = model.cache_dtype = own
    again = state_file.read(tmp_path / "a.state", model).state
    assert again.tensors().keys() == state.tensors().keys()
    for name, tensor in state.tensors().items():
        assert again.tensors()[name].dtype == tensor.dtype and torch.equal(again.tensors()[name], tensor), name


@pytest.mark.parametrize("own", [None, torch.int8])
@torch.no_grad()
def test_the_runtime_leaves_such_states_to_the_module(own):
    """And reads others itself, whatever the model does by itself."""
    if runtime.unavailable():
        pytest.skip("the native library was not built")
    model = build(ModelConfig(16, 20, ((Mamba2(24, 4, 8),), (Attention(2, 2, 4),))))
    model.state_dtype = own
    run, ids = runtime.of(model), text(model.config, 2, 9)
    mine, theirs, exact = (
        model.new_state(2, 9, torch.int8),
        model.new_state(2, 9, torch.int8),
        model.new_state(2, 9, torch.float32),
    )
    assert not run.takes(mine) and run.takes(exact)
    assert torch.equal(run(ids, mine), model(ids, theirs))
    for name, tensor in theirs.tensors().items():
        assert torch.equal(mine.tensors()[name], tensor), name
    assert torch.allclose(run(ids, exact), model(ids), atol=1e-3)


def test_gradients_pass_a_state_in_eight_bits():
    model = build(MIXED)
    state = model.new_state(2, 40, torch.int8)
    for piece in text(MIXED, 2, 12).split(6, 1):
        model(piece, state).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
