"""What the runtime is not made for is refused as the module refuses it, with the state as it was."""

import pytest
import torch

from hybrid_models import LONGEST, ONE_OF_EACH, alone, build, text
from leanlm.errors import UsageError

pytest.importorskip("leanlm.runtime.native", reason="the native library was not built")
from leanlm.runtime.native import NativeRuntime

MODULE = build(alone(ONE_OF_EACH["attention with conv"]))
VOCAB = MODULE.config.padded_vocab_size
BAD = {
    "an id too high": lambda: torch.tensor([[0, VOCAB], [0, 0]]),
    "a negative id": lambda: torch.tensor([[0, 0], [-1, 0]]),
    "a bad id in a later piece": lambda: torch.cat([text(MODULE.config, 2, LONGEST - 1), torch.full((2, 1), VOCAB)], 1),
    "fractions": lambda: torch.zeros(2, 3),
    "bytes": lambda: torch.zeros(2, 3, dtype=torch.uint8),
    "no batch": lambda: torch.zeros(3, dtype=torch.int64),
    "other rows than the state's": lambda: text(MODULE.config, 3, 2),
    "more than the state's capacity": lambda: text(MODULE.config, 2, LONGEST + 1),
}


def refusal(run, tokens, state) -> BaseException:
    before = state.clone()
    with pytest.raises(Exception) as refused, torch.no_grad():
        run(tokens, state)
    for (name, now), then in zip(state.tensors().items(), before.tensors().values(), strict=True):
        assert torch.equal(now, then), f"{name} was changed"
    return refused.value


@pytest.mark.parametrize("case", BAD)
def test_as_the_module_refuses_it(case):
    mine, theirs = (refusal(run, BAD[case](), MODULE.new_state(2)) for run in (NativeRuntime(MODULE), MODULE))
    assert type(mine) is type(theirs) and str(mine) == str(theirs)


def test_an_empty_batch():
    mine, theirs = (refusal(run, text(MODULE.config, 0, 3), MODULE.new_state(0)) for run in (NativeRuntime(MODULE), MODULE))
    assert type(mine) is type(theirs)


@pytest.mark.parametrize("other", ["mamba2", "attention", "window of 7 with conv", "mamba1"])
def test_the_state_of_another_model(other):
    """Its tensors are smaller than what would be written into them, or have other names."""
    state = build(alone(ONE_OF_EACH[other])).new_state(2)
    assert isinstance(refusal(NativeRuntime(MODULE), text(MODULE.config, 2, 3), state), UsageError)


def test_a_state_with_rows_missing():
    state = MODULE.new_state(2)
    state.memories[0]["k"] = state.memories[0]["k"][:1]
    assert isinstance(refusal(NativeRuntime(MODULE), text(MODULE.config, 2, 3), state), UsageError)


def test_a_state_that_was_refused_is_refused_again_and_a_mended_one_is_not():
    runtime, state = NativeRuntime(MODULE), MODULE.new_state(2)
    runtime(text(MODULE.config, 2, 3), state)
    kept = state.memories[0]["k"]
    state.memories[0]["k"] = kept[:1]
    for _ in range(2):
        refusal(runtime, text(MODULE.config, 2, 3), state)
    state.memories[0]["k"] = kept
    runtime(text(MODULE.config, 2, 3), state)
    assert state.position.tolist() == [6, 6]


@pytest.mark.parametrize("mixer", ONE_OF_EACH)
def test_no_tokens_at_all(mixer):
    module = build(alone(ONE_OF_EACH[mixer]))
    state = module.new_state(2)
    for run in (NativeRuntime(module), module):
        run(text(module.config, 2, 3), state)
        before = state.clone()
        assert run(text(module.config, 2, 0), state).shape == (2, 0, VOCAB)
        assert all(map(torch.equal, state.tensors().values(), before.tensors().values()))


def test_ids_of_32_bits_and_ids_that_lie_apart():
    runtime, tokens = NativeRuntime(MODULE), text(MODULE.config, 2, 40)
    wanted = runtime(tokens, MODULE.new_state(2))
    for other in (tokens.int(), tokens.repeat(1, 2)[:, :40], tokens.t().contiguous().t()):
        assert torch.equal(runtime(other, MODULE.new_state(2)), wanted)


def test_states_that_the_library_does_not_know_are_read_by_the_module():
    module, tokens = build(alone(ONE_OF_EACH["mamba2"])), text(MODULE.config, 2, 9)
    for change in (torch.Tensor.half, torch.Tensor.double):
        mine, theirs = module.new_state(2), module.new_state(2)
        for state in (mine, theirs):
            state.memories[0]["ssm"] = change(state.memories[0]["ssm"])
        with torch.no_grad():
            assert torch.equal(NativeRuntime(module)(tokens, mine), module(tokens, theirs))
