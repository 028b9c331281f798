"""States on disk: they continue exactly, keep only what was read, and are refused by other models and when damaged."""

import json
import resource

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from golden_cases import checkpoint_cases
from leanlm.checkpoint import state_file
from leanlm.checkpoint.load import load_module
from leanlm.errors import CheckpointError, LeanLMError, NotFound, UsageError

CASES = {case.name: case for case in checkpoint_cases()}
TOKENS = torch.arange(60).reshape(2, 30) % 50


@pytest.fixture
def llama():
    return load_module(CASES["llama/llama3_rope_tied"].folder).module


@pytest.fixture
def saved(llama, tmp_path):
    """A state of 30 tokens in a file, with data of the caller's."""
    state = llama.new_state(2, capacity=64)
    with torch.no_grad():
        llama(TOKENS, state)
    file = tmp_path / "a.state"
    state_file.write(file, llama, state, {"turns": [1, "zwei"]}, {"rng": torch.arange(3, dtype=torch.uint8)})
    return file


@torch.no_grad()
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_a_state_continues_exactly(case, dtype, tmp_path):
    module = load_module(case.folder).module
    state = module.new_state(2, capacity=40, dtype=dtype)
    module(TOKENS, state)
    state_file.write(tmp_path / "a.state", module, state)
    again = state_file.read(tmp_path / "a.state", load_module(case.folder).module).state
    for name, tensor in state.tensors().items():
        other = again.tensors()[name]
        assert other.dtype == tensor.dtype and torch.equal(other, tensor), name
    assert torch.equal(module(TOKENS[:, :7], again), module(TOKENS[:, :7], state))


def test_keys_are_trimmed_and_capacity_restored(llama, saved):
    with safe_open(saved, "pt") as file:
        assert {file.get_tensor(name).shape[1] for name in file.keys() if name.endswith((".k", ".v"))} == {30}  # noqa: SIM118
    assert {m["k"].shape[1] for m in state_file.read(saved, llama).state.memories if m} == {64}
    assert {m["k"].shape[1] for m in state_file.read(saved, llama, capacity=31).state.memories if m} == {31}
    with pytest.raises(CheckpointError, match="holds 30 tokens, more than the capacity of 29"):
        state_file.read(saved, llama, capacity=29)


@torch.no_grad()
def test_caches_of_eight_bits(llama, tmp_path):
    state = llama.new_state(2, capacity=64, cache_dtype=torch.int8)
    llama(TOKENS, state)
    state_file.write(tmp_path / "a.state", llama, state)
    again = state_file.read(tmp_path / "a.state", llama).state
    for name, tensor in state.tensors().items():
        assert again.tensors()[name].dtype == tensor.dtype and torch.equal(again.tensors()[name], tensor), name
    assert torch.equal(llama(TOKENS[:, :7], again), llama(TOKENS[:, :7], state))


def test_the_callers_data(llama, saved):
    _, extra, tensors = state_file.read(saved, llama)
    assert extra == {"turns": [1, "zwei"]}
    assert torch.equal(tensors["rng"], torch.arange(3, dtype=torch.uint8))
    told = state_file.describe(saved)
    assert told["position"] == [30, 30] and told["capacity"] == 64 and told["extra"] == extra and "attention" in told["summary"]


def test_an_empty_state(llama, tmp_path):
    state_file.write(tmp_path / "a.state", llama, llama.new_state(1, capacity=8))
    assert state_file.read(tmp_path / "a.state", llama).state.position.tolist() == [0]


def test_what_is_read_is_independent_of_the_file(llama, saved):
    before = saved.read_bytes()
    state, _, tensors = state_file.read(saved, llama)
    for tensor in (*state.tensors().values(), *tensors.values()):
        tensor.fill_(1)
    assert saved.read_bytes() == before


def test_other_models_are_refused_with_the_reason(llama, saved):
    other = load_module(CASES["mamba2/ss_hybrid_dconv"].folder).module
    with pytest.raises(CheckpointError, match=r"another model \(width 64.*this one has width 48"):
        state_file.read(saved, other)
    with pytest.raises(CheckpointError, match="saved from the model in float32; load it in that dtype, not bfloat16"):
        state_file.read(saved, load_module(CASES["llama/llama3_rope_tied"].folder, torch.bfloat16).module)
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter.mul_(1.01)
    with pytest.raises(CheckpointError, match=r"the same make .* but other weights"):
        state_file.read(saved, llama)


def test_fingerprints_do_not_depend_on_what_is_beside_the_model(llama):
    again = load_module(CASES["llama/llama3_rope_tied"].folder).module
    assert state_file.fingerprint(llama) == state_file.fingerprint(again)


def damaged(saved, change):
    with safe_open(saved, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    change(metadata, tensors)
    saved.unlink()
    save_file(tensors, saved, metadata)


DAMAGE = {
    "newer": (lambda m, t: m.update(version="2"), "version 2 of the state format"),
    "foreign": (lambda m, t: m.update(format="pt"), "no state written by leanlm"),
    "extra": (lambda m, t: m.update(extra="{"), "damaged state file"),
    "capacity": (lambda m, t: m.update(capacity="5"), "more than the capacity of 5"),
    "no position": (lambda m, t: t.pop("state.position"), "holds no state"),
    "negative position": (lambda m, t: t["state.position"].fill_(-1), "holds no state"),
    "missing tensor": (lambda m, t: t.pop("state.0.k"), "'0.k' is in one of them only"),
    "foreign tensor": (lambda m, t: t.update({"state.9.ssm": torch.ones(2)}), "'9.ssm' is in one"),
    "shape": (lambda m, t: t.update({"state.2.v": torch.ones(2, 30, 1, 3)}), r"'2.v' is \[2, 30, 1, 3\] and should be"),
    "integers": (lambda m, t: t.update({"state.2.v": torch.ones(2, 30, 1, 16, dtype=torch.int64)}), "'2.v'"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage(llama, saved, name):
    change, message = DAMAGE[name]
    damaged(saved, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        state_file.read(saved, llama)
    assert str(saved) in str(caught.value) and "\n" not in str(caught.value)
    if name in ("newer", "foreign", "extra"):
        with pytest.raises(CheckpointError, match=message):
            state_file.describe(saved)


@pytest.mark.parametrize("keep", [0, 7, 300, 0.5])
def test_cut_short(llama, saved, keep):
    data = saved.read_bytes()
    saved.unlink()
    saved.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(CheckpointError, match="cut short"):
        state_file.read(saved, llama)


def test_not_a_state_file(llama, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match="not a state file"):
        state_file.read(tmp_path / "a.json", llama)
    with pytest.raises(NotFound, match="no such state file"):
        state_file.read(tmp_path / "absent", llama)
    with pytest.raises(UsageError, match="is a folder"):
        state_file.write(tmp_path, llama, llama.new_state(1, capacity=8))
    with pytest.raises(CheckpointError):
        state_file.read(tmp_path, llama)


def test_a_full_disk_leaves_the_old_file(llama, saved):
    before = saved.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(LeanLMError, match="cannot write"):
            state_file.write(saved, llama, llama.new_state(2, capacity=64), tensors={"big": torch.zeros(len(before))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert saved.read_bytes() == before and [p.name for p in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize("name, value", [("position", -7), ("position", 10**12), ("start", -3), ("start", 50)])
def test_positions_that_cannot_be_are_refused(llama, saved, tmp_path, name, value):
    state = state_file.read(saved, llama).state
    next(memory for memory in state.memories if memory)[name].fill_(value)
    tensors = state.tensors()
    with safe_open(saved, "pt") as opened:
        metadata = opened.metadata()
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "bad.state", metadata)
    with pytest.raises(CheckpointError):
        state_file.read(tmp_path / "bad.state", llama)
