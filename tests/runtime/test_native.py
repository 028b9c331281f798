"""The native runtime is the module: same logits, same states, whatever the model, the format, the cut or the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from golden_cases import checkpoint_cases
from hybrid_models import LONGEST, ONE_OF_EACH, alone, build, cut_texts, hybrids, text
from leanlm.checkpoint.load import load_module
from leanlm.model.format import Grouped
from leanlm.model.language_model import LanguageModel
from leanlm.quantize.convert import convert

native = pytest.importorskip("leanlm.runtime.native", reason="the native library was not built")
from leanlm.ops.native import EXACT, INT8  # noqa: E402
from leanlm.runtime.native import NativeRuntime  # noqa: E402

FLOAT_CASES = [case for case in checkpoint_cases() if not case.case.startswith("bf16")]
TOLERANCE = 1e-4  # of the largest logit, float32


def agree(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    scale = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
    assert found.shape == wanted.shape
    assert not wanted.numel() or float((found - wanted).abs().max()) <= tolerance * scale


def same_state(a, b, tolerance: float = TOLERANCE) -> None:
    for (name, x), (other, y) in zip(a.tensors().items(), b.tensors().items(), strict=True):
        assert name == other and x.dtype == y.dtype
        agree(x.double(), y.double(), tolerance)


@torch.no_grad()
def compare(module: LanguageModel, tokens: torch.Tensor, pieces: list[int], tolerance: float = TOLERANCE) -> None:
    """Native in pieces beside the module in one go: logits and states."""
    runtime, mine, theirs = NativeRuntime(module, EXACT), module.new_state(len(tokens)), module.new_state(len(tokens))
    wanted = module(tokens, theirs).float()
    found = torch.cat([runtime(piece, mine) for piece in tokens.split(pieces, 1)], 1)
    agree(found, wanted, tolerance)
    same_state(mine, theirs, tolerance)


@pytest.mark.parametrize("case", FLOAT_CASES, ids=lambda case: case.name)
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


@pytest.mark.parametrize("format", [Grouped(4, 8), Grouped(8), Grouped(3, 0, False), Grouped(6, 12)], ids=str)
@pytest.mark.parametrize("mixer", ["mamba1", "mamba2 with mlp", "discrete", "attention with rope"])
def test_packed_weights(mixer, format):
    module = build(alone(ONE_OF_EACH[mixer], tied=False))
    names = [n for n, m in module.matrices().items() if not (format.group and m.weight.shape[1] % format.group)]
    convert(module, dict.fromkeys(names, format))
    compare(module, text(module.config, 2, 40), [1, 30, 9])
    tokens = text(module.config, 2, 12)
    with torch.no_grad():  # activations in 8 bits: near, and not the same
        found = NativeRuntime(module, INT8)(tokens, module.new_state(2))
    agree(found, module(tokens).detach(), 0.1)


def test_rows_at_different_positions():
    module = build(alone(ONE_OF_EACH["window of 7 with conv"]))
    runtime = NativeRuntime(module)
    lengths, together = (3, 11, 6), module.new_state(3)
    singles = []
    for row, length in enumerate(lengths):
        state = module.new_state(1)
        runtime(text(module.config, 1, length, seed=row), state)
        together.write([row], state)
        singles.append(state)
    following = text(module.config, 3, 4, seed=9)
    found = torch.cat([runtime(token, together) for token in following.split(1, 1)], 1)
    for row, state in enumerate(singles):
        agree(found[row], runtime(following[row : row + 1], state)[0], 1e-5)


def test_changed_weights_are_noticed():
    module = build(alone(ONE_OF_EACH["mamba2"]))
    runtime, tokens = NativeRuntime(module), text(module.config, 1, 5)
    before = runtime(tokens, module.new_state(1))
    with torch.no_grad():
        module.layers[0][0].mixer.D.add_(1)
        changed = module(tokens, module.new_state(1))
    assert not torch.allclose(before, changed)
    agree(runtime(tokens, module.new_state(1)), changed)
    convert(module, {"layers.0.0.mixer.in_proj.weight": Grouped(4, 8)})
    with torch.no_grad():
        agree(NativeRuntime(module, EXACT)(tokens, module.new_state(1)), module(tokens, module.new_state(1)))


def test_states_go_from_one_to_the_other():
    module = build(alone(ONE_OF_EACH["attention with rope"]))
    runtime, tokens = NativeRuntime(module), text(module.config, 2, 30)
    with torch.no_grad():
        wanted = module(tokens, module.new_state(2))
        state = module.new_state(2)
        parts = [module(tokens[:, :9], state), runtime(tokens[:, 9:20], state), module(tokens[:, 20:], state)]
    agree(torch.cat(parts, 1), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_are_computed_in_float32(dtype):
    module = build(alone(ONE_OF_EACH["mamba2"]), dtype=dtype)
    wide = build(module.config)
    wide.load_state_dict({name: weight.float() for name, weight in module.state_dict().items()})
    tokens = text(module.config, 2, 20)
    with torch.no_grad():
        found = NativeRuntime(module)(tokens, module.new_state(2, dtype=torch.float32))
        agree(found, wide(tokens, wide.new_state(2)), 3e-2)  # the tail of the convolution is kept in the narrow dtype
