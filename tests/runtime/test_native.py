"""The native runtime is the module: same logits, same states, whatever the model, the cut, the batch or the threads."""

import pytest
import torch
from comparison import agree, compare
from hypothesis import given, settings

from golden_cases import checkpoint_cases
from hybrid_models import LONGEST, ONE_OF_EACH, alone, build, cut_texts, hybrids, text
from leanlm.checkpoint.load import load_module
from leanlm.model.config import Attention, GatedMLP, Mamba1, Mamba2, ModelConfig, Rope
from leanlm.model.format import Grouped
from packed_models import FORMATS, pack

pytest.importorskip("leanlm.runtime.native", reason="the native library was not built")
from hypothesis import strategies as st

from leanlm.runtime.native import NativeRuntime

WIDE = ModelConfig(  # wide enough that every product is dealt out in several tasks
    256,
    1000,
    (
        (Mamba2(512, 32, 16, 2), GatedMLP(600)),
        (Attention(8, 2, 32, window=9, rope=Rope(32)), GatedMLP(600)),
        (Mamba1(384, 8, 4, 16), Attention(8, 4, 32)),
    ),
    context_length=300,
)


@pytest.mark.parametrize("case", checkpoint_cases(), ids=lambda case: case.name)
def test_golden_models(case):
    module = load_module(case.folder, torch.float32).module
    compare(module, text(module.config, 2, 70), [1, 5, 64])


@pytest.mark.parametrize("mixer", ONE_OF_EACH)
def test_every_mixer(mixer):
    module = build(alone(ONE_OF_EACH[mixer], tied=False))
    compare(module, text(module.config, 3, LONGEST), [LONGEST])
    compare(module, text(module.config, 1, 20), [1] * 20)


@settings(max_examples=60, deadline=None)
@given(hybrids(), cut_texts(), st.integers(1, 3))
def test_any_model_however_cut(config, cut, batch):
    length, pieces = cut
    compare(build(config), text(config, batch, length), pieces)


@pytest.mark.parametrize("mixer", ["attention with rope", "attention with conv", "window of 2", "window of 7 with conv"])
def test_caches_of_eight_bits(mixer):
    """Native and module write the same codes, and a state goes from one to the other."""
    module = build(alone(ONE_OF_EACH[mixer]))
    runtime, tokens = NativeRuntime(module), text(module.config, 2, 40)
    mine, theirs = (module.new_state(2, cache_dtype=torch.int8) for _ in range(2))
    with torch.no_grad():
        wanted = module(tokens, theirs)
        parts = [runtime(tokens[:, :1], mine), module(tokens[:, 1:9], mine), runtime(tokens[:, 9:39], mine)]
        found = torch.cat([*parts, runtime(tokens[:, 39:], mine)], 1)
    agree(found, wanted, 5e-3)  # a value that falls between two codes may go to either
    for name, tensor in theirs.tensors().items():
        off = (mine.tensors()[name].double() - tensor.double()).abs()
        if tensor.dtype == torch.int8:
            assert off.max() <= 1 and (off > 0).float().mean() < 0.01, name
        else:
            assert off.max() <= 5e-3 * max(1, tensor.abs().max()), name


@pytest.mark.parametrize("mixer", ["window of 7 with conv", "attention with rope", "mamba1", "mamba2", "discrete"])
def test_rows_at_different_positions(mixer):
    module = build(alone(ONE_OF_EACH[mixer]))
    runtime = NativeRuntime(module)
    lengths, together = (3, 11, 6), module.new_state(3)
    singles = []
    for row, length in enumerate(lengths):
        state = module.new_state(1)
        runtime(text(module.config, 1, length, seed=row), state)
        together.write([row], state)
        singles.append(state)
    following = text(module.config, 3, 9, seed=9)
    found = torch.cat([runtime(piece, together) for piece in following.split([1, 1, 4, 3], 1)], 1)
    for row, state in enumerate(singles):
        agree(found[row], runtime(following[row : row + 1], state)[0], 1e-5)


def test_only_the_last_token():
    module = build(alone(ONE_OF_EACH["mamba2"]))
    runtime, tokens = NativeRuntime(module), text(module.config, 2, LONGEST)
    whole, last = (runtime(tokens, module.new_state(2), last_only=only) for only in (False, True))
    agree(last, whole[:, -1:], 1e-6)


def test_states_go_from_one_to_the_other():
    module = build(alone(ONE_OF_EACH["attention with rope"]))
    runtime, tokens = NativeRuntime(module), text(module.config, 2, 30)
    with torch.no_grad():
        wanted = module(tokens, module.new_state(2))
        state = module.new_state(2)
        parts = [module(tokens[:, :9], state), runtime(tokens[:, 9:20], state), module(tokens[:, 20:], state)]
    agree(torch.cat(parts, 1), wanted)


@pytest.mark.parametrize("format", [None, Grouped(8), FORMATS["int4-g32"], FORMATS["ternary in bands of rows"]], ids=str)
@pytest.mark.parametrize("batch, length", [(1, 1), (3, 1), (2, 70)])
def test_threads_do_not_change_a_bit(threads, format, batch, length):
    module = build(WIDE)
    if format is not None:
        pack(module, format)
    runtime, tokens = NativeRuntime(module), text(WIDE, batch, 12 + length)
    results = []
    for count in (1, 2, 3, 5):
        threads(count)
        state = module.new_state(batch)
        runtime(tokens[:, :12], state)
        results.append((runtime(tokens[:, 12:], state), *state.tensors().values()))
    for found in results[1:]:
        assert all(map(torch.equal, found, results[0]))
