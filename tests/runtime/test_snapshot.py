"""Weights that changed are noticed, whichever way; nothing is kept alive for it."""

import gc
import weakref

import pytest
import torch

from hybrid_models import ONE_OF_EACH, alone, build, text
from leanlm.model.format import Grouped
from leanlm.model.linear import Linear
from leanlm.quantize.convert import convert

native = pytest.importorskip("leanlm.runtime.native", reason="the native library was not built")
from leanlm.runtime.lowering import Program  # noqa: E402
from leanlm.runtime.native import ROWS, NativeRuntime  # noqa: E402

IN_PROJ = "layers.0.0.mixer.in_proj.weight"


def mixer(module):
    return module.layers[0][0].mixer


@torch.no_grad()
def in_place(module):
    mixer(module).D.add_(1)


@torch.inference_mode()
def in_inference_mode(module):
    mixer(module).A_log.mul_(0.5)


def by_data(module):
    mixer(module).dt_bias.data.add_(1)


def data_replaced(module):
    for _ in range(2):  # whose second allocation may well lie where the first weight did
        module.norm.weight.data = module.norm.weight.data * 1.5


def parameter_replaced(module):
    mixer(module).D = torch.nn.Parameter(mixer(module).D.detach() + 1)


def layer_replaced(module):
    old = mixer(module).out_proj
    mixer(module).out_proj = Linear(old.in_features, old.out_features)
    torch.nn.init.normal_(mixer(module).out_proj.weight)


def loaded(module):
    module.load_state_dict({name: weight * 0.9 for name, weight in module.state_dict().items()})


def loaded_by_assignment(module):
    module.load_state_dict({name: weight * 0.9 for name, weight in module.state_dict().items()}, assign=True)


def quantized(module):
    convert(module, {IN_PROJ: Grouped(3, 8)})


def narrowed(module):
    module.to(torch.bfloat16)


def packed_part_replaced(module):
    mixer(module).out_proj.weight.scales.data = mixer(module).out_proj.weight.scales * 2


def stepped(module):
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
    module(text(module.config, 1, 3)).sum().backward()
    optimiser.step()


CHANGES = [in_place, in_inference_mode, by_data, data_replaced, parameter_replaced, layer_replaced, loaded]
CHANGES += [loaded_by_assignment, quantized, narrowed, packed_part_replaced, stepped]
COUNTED = [in_place, in_inference_mode, parameter_replaced, loaded, loaded_by_assignment, quantized]


def model():
    module = build(alone(ONE_OF_EACH["mamba2"]))
    convert(module, {"layers.0.0.mixer.out_proj.weight": Grouped(4)})
    return module


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_between_texts(change):
    module = model()
    runtime, tokens = NativeRuntime(module), text(module.config, 1, 5)
    with torch.no_grad():
        before = runtime(tokens, module.new_state(1, dtype=torch.float32))
    change(module)
    with torch.no_grad():
        after = runtime(tokens, module.new_state(1, dtype=torch.float32))
        afresh = NativeRuntime(module)(tokens, module.new_state(1, dtype=torch.float32))
    assert not torch.equal(before, after) and torch.equal(after, afresh)


INSIDE = [(change, 2) for change in CHANGES] + [(change, 1) for change in COUNTED]


@pytest.mark.parametrize(("change", "read"), INSIDE, ids=[f"{change.__name__}, {read} read" for change, read in INSIDE])
def test_a_change_inside_of_a_text(change, read):
    module = model()
    runtime, tokens, state = NativeRuntime(module), text(module.config, 1, 5), module.new_state(1, dtype=torch.float32)
    with torch.no_grad():
        runtime(tokens, state)
        runtime(tokens[:, :1], state)
    other = state.clone()
    change(module)
    with torch.no_grad():
        assert torch.equal(runtime(tokens[:, :read], state), NativeRuntime(module)(tokens[:, :read], other))


@torch.no_grad()
def test_weights_that_did_not_change_are_lowered_once(monkeypatch):
    made, module = [], model()
    monkeypatch.setattr(native, "Program", lambda *given: made.append(given) or Program(*given))
    runtime, tokens = NativeRuntime(module), text(module.config, 1, 5)
    for state in (module.new_state(1), module.new_state(2), module.new_state(1)):
        for token in tokens.split(1, 1):
            runtime(token.expand(state.batch, 1), state)
    assert len(made) == 1


def test_a_model_made_in_inference_mode():
    with torch.inference_mode():
        module = model()
        runtime, tokens = NativeRuntime(module), text(module.config, 1, 5)
        before = runtime(tokens, module.new_state(1))
        mixer(module).D.add_(1)
        after = runtime(tokens, module.new_state(1))
    assert not torch.equal(before, after)


@torch.no_grad()
def test_memories_that_are_replaced():
    module = model()
    runtime, tokens, state = NativeRuntime(module), text(module.config, 1, 5), module.new_state(1)
    runtime(tokens, state)
    fork = state.clone()
    wanted = runtime(tokens, fork)
    for memory in state.memories:
        for name in memory or ():
            memory[name] = memory[name].clone()
    assert torch.equal(runtime(tokens, state), wanted)
    for (name, mine), theirs in zip(state.tensors().items(), fork.tensors().values(), strict=True):
        assert torch.equal(mine, theirs), name


@torch.no_grad()
def test_neither_module_nor_state_is_kept_alive():
    module = model()
    runtime, state = NativeRuntime(module), module.new_state(1)
    runtime(text(module.config, 1, 5), state)
    gone = weakref.ref(state), weakref.ref(module), weakref.ref(state.memories[0]["ssm"])
    del state, module
    gc.collect()
    assert [one() for one in gone] == [None, None, None]


@torch.no_grad()
def test_only_the_last_piece_of_a_prompt_meets_the_head():
    module = build(alone(ONE_OF_EACH["mamba2"]))
    runtime, tokens = NativeRuntime(module), text(module.config, 2, 2 * ROWS + 5)
    called, run = [], runtime.run
    runtime.run = lambda *given: called.append((given[1], given[7] is not None)) or run(*given)
    whole, parts = module.new_state(2), module.new_state(2)
    last = runtime(tokens, whole, last_only=True)
    steps = len(runtime.program.array)
    assert called == [(steps - 1, False)] * 4 + [(steps, True)]
    every = runtime(tokens, parts)
    assert torch.allclose(every[:, -1:], last, atol=1e-5)
    assert torch.allclose(every[:1], runtime(tokens[:1], module.new_state(1)), atol=1e-5)
