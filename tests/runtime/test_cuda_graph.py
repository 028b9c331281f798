"""The CUDA runtime against the module: on a card where there is one, else with a capture that runs its step on the CPU."""

import contextlib
import gc
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hybrid_models import ONE_OF_EACH, alone, build, text
from leanlm.model.config import Attention, Mamba2, ModelConfig, Rope, Telescoping
from leanlm.model.language_model import LanguageModel
from leanlm.runtime import cuda_graph
from leanlm.runtime.cuda_graph import Binding, CudaGraphRuntime

CARD = torch.cuda.is_available()
DEVICE = "cuda" if CARD else "cpu"
CAPTURED = {name: mixer for name, mixer in ONE_OF_EACH.items() if not isinstance(mixer, Telescoping)}
BOUNDED = Attention(2, 1, 6, window=5, rope=Rope(6))
HYBRID = ModelConfig(24, 40, ((Mamba2(30, 6, 5),), (Attention(4, 2, 6, rope=Rope(6)),), (BOUNDED,)), context_length=300)


@pytest.fixture
def captures(monkeypatch):
    """How many graphs were captured; as on a card, capturing itself runs nothing, and each graph has a result of its own."""
    made, real = [], cuda_graph.captured

    def captured(step, *place):
        made.append(step)
        return real(step, *place) if CARD else Replay(step)

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
    def refuse(step, *place):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graph, "captured", refuse)
    module = model(HYBRID)
    run = CudaGraphRuntime(module)
    with pytest.warns(UserWarning, match="tokens are decoded without CUDA graphs, slower: operation not permitted") as told:
        for batch in (2, 1):
            follow(module, run, batch)
    assert len(told) == 1


@torch.no_grad()
def test_no_memory_for_a_graph_is_said_once_and_other_batches_have_theirs(captures, monkeypatch):
    def full(step, *place):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    enough = cuda_graph.captured
    monkeypatch.setattr(cuda_graph, "captured", full)
    module = model(alone(ONE_OF_EACH["mamba2"]))
    run, tokens = CudaGraphRuntime(module), tokens_of(module, 2, 1)
    with pytest.warns(
        UserWarning, match=r"without CUDA graphs, slower: out of memory on \w+\S* for a graph of 2 texts"
    ) as told:
        for _ in range(2):
            state = module.new_state(2)
            for _ in range(3):
                run(tokens, state)
    assert len(told) == 1
    monkeypatch.setattr(cuda_graph, "captured", enough)
    follow(module, run, 1)
    assert len(captures) == 1


@torch.no_grad()
def test_graphs_wait_for_the_next_state_of_the_same_shapes(captures):
    module = model(HYBRID)
    run = CudaGraphRuntime(module)
    for seed in range(3):
        torch.manual_seed(seed)
        follow(module, run, 2, capacity=40)
    assert len(captures) == 1
    follow(module, run, 3, capacity=40)
    follow(module, run, 2, capacity=50)
    assert len(captures) == 3


@torch.no_grad()
def test_two_states_in_use_keep_their_own_tensors(captures):
    module = model(HYBRID)
    run, tokens = CudaGraphRuntime(module), tokens_of(module, 2, 12)
    mine, wanted = ([module.new_state(1, 40) for _ in range(2)] for _ in range(2))
    for i in range(6):
        for row in (0, 0, 1):  # of which graphs are captured between
            token = tokens[row : row + 1, i : i + 1]
            torch.testing.assert_close(run(token, mine[row]), module(token, wanted[row]), atol=2e-5, rtol=1e-4)
    for one, other in zip(mine, wanted, strict=True):
        for name, tensor in other.tensors().items():
            torch.testing.assert_close(one.tensors()[name], tensor, atol=2e-5, rtol=1e-4, msg=name)
    assert len(captures) == 6


@torch.no_grad()
def test_large_states_are_not_kept_alive(captures, monkeypatch):
    monkeypatch.setattr(cuda_graph, "KEPT", 0)
    module = model(HYBRID)
    run, state = CudaGraphRuntime(module), module.new_state(1, 40)
    for _ in range(3):
        run(tokens_of(module, 1, 1), state)
    held = weakref.ref(state.memories[0]["ssm"])
    captures.clear()
    del state
    gc.collect()
    assert held() is None


@torch.no_grad()
def test_states_made_in_inference_mode_have_graphs_of_their_own(captures):
    module = model(HYBRID)
    run = CudaGraphRuntime(module)
    with torch.inference_mode():
        follow(module, run, capacity=40)
    follow(module, run, capacity=40)
    assert len(captures) == 2


@torch.no_grad()
@pytest.mark.parametrize("prompt", [1, 5])
def test_weights_moved_beneath_are_noticed_with_the_next_prompt(captures, prompt):
    module = model(HYBRID)
    run = CudaGraphRuntime(module)
    follow(module, run, capacity=40)
    module.norm.weight.data = torch.randn_like(module.norm.weight)
    follow(module, run, prompt=prompt, capacity=40)
    assert len(captures) == 2


class Devices(TorchDispatchMode):
    """On which devices the operands of operations lie."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.found |= {t.device.type for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)}
        return result


@torch.no_grad()
@pytest.mark.parametrize("mixer", CAPTURED.values(), ids=CAPTURED)
def test_a_step_asks_the_cpu_for_nothing_and_tells_it_nothing(mixer, monkeypatch):
    """What a capture refuses, shown without a card: torch's meta device has no numbers to be waited for."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which knows no such device
    with torch.device("meta"):
        module = LanguageModel(alone(mixer))
    binding = Binding(module, module.new_state(2, 40, device="meta"))
    with Devices() as devices:
        binding.step(module, 40)
    assert devices.found == {"meta"}


class FailingGraph:
    """As torch's: where its step failed, capturing cannot end, and leaves its stream the current one."""

    def __init__(self, graph, stream, capture_error_mode, pool=None):
        self.stream, self.pool = stream, pool

    def __enter__(self):
        CURRENT.append(self.stream)

    def __exit__(self, kind, error, trace):
        if kind is not None:
            raise RuntimeError("operation failed due to a previous error during capture")
        CURRENT.pop()


CURRENT = ["the caller's"]


class OwnStream:
    device, device_index = "cuda:1", 1

    @contextlib.contextmanager
    def current(self, stream):
        assert stream is self
        before = list(CURRENT)
        CURRENT.append(self)
        try:
            yield
        finally:
            CURRENT[:] = before


def test_a_capture_that_fails_leaves_the_callers_stream_and_tells_the_steps_own_error(monkeypatch):
    """What torch does on a card is stood in for; that it does so is `torch.cuda.graph`'s code."""
    stream, ended, devices = OwnStream(), [], []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", FailingGraph)
    monkeypatch.setattr(torch.cuda, "stream", stream.current)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext(devices.append(device)))
    monkeypatch.setattr(torch, "zeros", lambda size, device: ended.append((CURRENT[-1], device)))
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, name, lambda *given: ended.append(given), raising=False)

    def step():
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        cuda_graph.captured(step, stream, (0, 7))
    assert CURRENT == ["the caller's"] and devices == ["cuda:1"]
    assert ended == [(1, (0, 7)), (1, (0, 7)), (stream, "cuda:1")]


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
