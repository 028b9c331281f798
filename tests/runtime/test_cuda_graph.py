"""The CUDA runtime against the module: on a card where there is one, else with a capture that runs its step on the CPU."""

import pytest
import torch

from hybrid_models import ONE_OF_EACH, alone, build, text
from leanlm.model.config import Attention, Mamba2, ModelConfig, Rope, Telescoping
from leanlm.runtime import cuda_graph
from leanlm.runtime.cuda_graph import CudaGraphRuntime

CARD = torch.cuda.is_available()
DEVICE = "cuda" if CARD else "cpu"
CAPTURED = {name: mixer for name, mixer in ONE_OF_EACH.items() if not isinstance(mixer, Telescoping)}
BOUNDED = Attention(2, 1, 6, window=5, rope=Rope(6))
HYBRID = ModelConfig(24, 40, ((Mamba2(30, 6, 5),), (Attention(4, 2, 6, rope=Rope(6)),), (BOUNDED,)), context_length=300)


@pytest.fixture
def captures(monkeypatch):
    """How many graphs were captured; as on a card, capturing itself runs nothing, and each graph has a result of its own."""
    made, real = [], cuda_graph.captured

    def captured(step, pool):
        made.append(step)
        return real(step, pool) if CARD else Replay(step)

    monkeypatch.setattr(cuda_graph, "captured", captured)
    return made


class Replay:
    """Runs its step on the CPU, into the one tensor that a graph would write to."""

    def __init__(self, step):
        self.step, self.result = step, None

    def __call__(self):
        found = self.step()
        self.result = found if self.result is None else self.result.copy_(found)
        return self.result


def model(config):
    return build(config, seed=0).to(DEVICE).eval()


def tokens_of(module, B, L, seed=0):
    return text(module.config, B, L, seed).to(DEVICE)


@torch.no_grad()
def follow(module, run, B=2, prompt=3, count=12, **state):
    """Logits and states of the module and of the runtime, a prompt and then one token after the other."""
    tokens = tokens_of(module, B, prompt + count)
    mine, wanted = module.new_state(B, **state), module.new_state(B, **state)
    for piece in tokens.split([prompt, *[1] * count], 1):
        torch.testing.assert_close(run(piece, mine), module(piece, wanted), atol=2e-5, rtol=1e-4)
    assert torch.equal(mine.position, wanted.position)
    for name, tensor in wanted.tensors().items():
        torch.testing.assert_close(mine.tensors()[name], tensor, atol=2e-5, rtol=1e-4, msg=name)
    return mine


@pytest.mark.parametrize("mixer", CAPTURED.values(), ids=CAPTURED)
def test_every_mixer_gives_the_modules_logits_and_state(mixer, captures):
    module = model(alone(mixer))
    follow(module, CudaGraphRuntime(module))
    assert len(captures) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_keys_in_other_dtypes(dtype, captures):
    module = model(HYBRID)
    follow(module, CudaGraphRuntime(module), cache_dtype=dtype)


def test_a_graph_for_every_power_of_two_of_slots(captures):
    module = model(HYBRID)
    follow(module, CudaGraphRuntime(module), prompt=60, count=80, capacity=140)
    assert len(captures) == 3  # 64, 128, 140


@torch.no_grad()
def test_a_graph_is_come_back_to(captures):
    """A state that is written to may stand where fewer slots are looked at than before."""
    module = model(HYBRID)
    run, state, tokens = CudaGraphRuntime(module), module.new_state(1, 140), tokens_of(module, 1, 130)
    module(tokens[:, :2], state)
    run(tokens[:, 2:3], state)
    run(tokens[:, 3:4], state)
    early = state.clone()
    module(tokens[:, 4:70], state)
    run(tokens[:, 70:71], state)
    state.write([0], early)
    wanted = module(tokens[:, 4:5], early)
    torch.testing.assert_close(run(tokens[:, 4:5], state), wanted, atol=2e-5, rtol=1e-4)
    assert len(captures) == 2


@torch.no_grad()
def test_rows_at_different_positions(captures):
    module = model(HYBRID)
    run, state = CudaGraphRuntime(module), module.new_state(2, 40)
    alone_states = [module.new_state(1, 40) for _ in range(2)]
    for row, (one, length) in enumerate(zip(alone_states, (9, 2))):
        module(tokens_of(module, 1, length, row), one)
        state.write([row], one)
    for seed in range(5):
        token = tokens_of(module, 2, 1, seed)
        found = run(token, state)
        for row, one in enumerate(alone_states):
            torch.testing.assert_close(found[row], module(token[row : row + 1], one)[0], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_a_state_goes_from_one_to_the_other_and_begins_after_packed_documents(captures):
    module = model(HYBRID)
    run, tokens = CudaGraphRuntime(module), tokens_of(module, 1, 20)
    marks = (torch.arange(10, device=DEVICE) > 5).long()[None]
    mine, wanted = module.new_state(1, 30), module.new_state(1, 30)
    for state in (mine, wanted):
        module(tokens[:, :10], state, marks)
    for i in range(10, 20):
        found = (module if i == 15 else run)(tokens[:, i : i + 1], mine)
        torch.testing.assert_close(found, module(tokens[:, i : i + 1], wanted), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_weights_given_anew_are_noticed(captures):
    module = model(HYBRID)
    run, state, token = CudaGraphRuntime(module), module.new_state(1, 30), tokens_of(module, 1, 1)
    for _ in range(3):
        run(token, state)
    module.norm.weight = torch.nn.Parameter(torch.randn_like(module.norm.weight))
    wanted = module(token, state.clone())
    torch.testing.assert_close(run(token, state), wanted)
    assert len(captures) == 1


@torch.no_grad()
def test_a_state_that_is_full_is_refused_unchanged(captures):
    from leanlm.errors import CapacityError

    module = model(HYBRID)
    run, state, token = CudaGraphRuntime(module), module.new_state(1, 4), tokens_of(module, 1, 1)
    for _ in range(4):
        run(token, state)
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    with pytest.raises(CapacityError):
        run(token, state)
    assert all(torch.equal(before[name], tensor) for name, tensor in state.tensors().items())


@torch.no_grad()
def test_what_cannot_be_captured_is_run_by_the_module_and_said_once(monkeypatch):
    def refuse(step, pool):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graph, "captured", refuse)
    module = model(HYBRID)
    with pytest.warns(UserWarning, match="tokens are decoded without CUDA graphs, slower: operation not permitted") as told:
        follow(module, CudaGraphRuntime(module))
    assert len(told) == 1


def test_telescoping_is_left_to_the_module(captures):
    module = model(alone(ONE_OF_EACH["telescoping"]))
    follow(module, CudaGraphRuntime(module))
    assert not captures


@torch.no_grad()
def test_with_the_kernels(captures, monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("LEANLM_IMPL", "triton")
    module = model(HYBRID)
    follow(module, CudaGraphRuntime(module), count=3)
