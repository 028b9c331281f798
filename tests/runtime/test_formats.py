"""Weights in every format: native is the module in float32, and within stated bounds with less.

16 bits: the module rounds every step to 16 bits and the runtime none, so it is nearer to float32 than the module.
Activations in 8 bits: no further from the exact result than twice what a module is whose activations are rounded likewise.
"""

import copy
from contextlib import contextmanager
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from comparison import TOLERANCE, agree, compare

from golden_cases import checkpoint_cases
from hybrid_models import ONE_OF_EACH, alone, build, text
from leanlm.api import cast
from leanlm.checkpoint.load import load_module
from leanlm.model.config import Attention, GatedMLP, Mamba1, Mamba2, ModelConfig, Rope
from leanlm.model.packed import GroupedWeight, Packed, TernaryWeight
from packed_models import FORMATS, pack

pytest.importorskip("leanlm.runtime.native", reason="the native library was not built")
from leanlm.ops.native import EXACT, INT8
from leanlm.runtime.native import NativeRuntime

CASES = {case.name: case for case in checkpoint_cases()}
GROUP, TERNARY_GROUP = 32, 256  # activations that share a scale in 8 bits (INT8 in native/include/leanlm.h)
WIDE = ModelConfig(  # every matrix inside the layers divides into groups of 128
    128,
    90,
    ((Mamba2(256, 64, 16), GatedMLP(384)), (Attention(4, 2, 64, rope=Rope(64)), GatedMLP(384)), (Mamba1(256, 8, 4, 8),)),
    context_length=150,
)


@cache
def golden(name: str):
    return load_module(CASES[name].folder, torch.float32).module


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", CASES)
def test_golden_models_in_every_format(name, format):
    module = copy.deepcopy(golden(name))
    if not pack(module, FORMATS[format]):
        pytest.skip("no matrix divides into these groups")
    compare(module, text(module.config, 2, 45), [1, 5, 39])


@pytest.mark.parametrize("format", FORMATS)
def test_wide_models_in_every_format(format):
    module = build(WIDE)
    assert pack(module, FORMATS[format])
    compare(module, text(WIDE, 2, 70), [1, 60, 1, 8])
    compare(module, text(WIDE, 3, 4), [1] * 4)


@pytest.mark.parametrize("scales", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("format", ["int4-g32", "int3-g32-asym", "ternary in bands of rows", "ternary in bands of columns"])
def test_scales_of_16_bits(format, scales):
    module = build(WIDE)
    pack(module, FORMATS[format])
    for matrix in module.matrices().values():
        if matrix.format is not None:
            matrix.weight.scales = matrix.weight.scales.to(scales)
    compare(module, text(WIDE, 2, 20), [1, 19])


def rounded(x: torch.Tensor, group: int) -> torch.Tensor:
    """x [..., n] as the library holds it in 8 bits: whole multiples of 1/127 of the largest of every group."""
    n = x.shape[-1]
    blocks = F.pad(x, (0, -n % group)).unflatten(-1, (-1, group))
    scale = (blocks.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-30)
    return ((blocks / scale).round() * scale).flatten(-2)[..., :n]


@contextmanager
def rounded_activations(monkeypatch):
    """Packed matrices are multiplied with rounded activations."""

    def linear(weight: Packed, x, bias=None):
        group = TERNARY_GROUP if isinstance(weight, TernaryWeight) else GROUP
        return F.linear(rounded(x, group), weight.dequantize(x.dtype), bias)

    with monkeypatch.context() as patch:
        for kind in (GroupedWeight, TernaryWeight):
            patch.setattr(kind, "linear", linear)
        yield


@pytest.mark.parametrize("pieces", [[40], [1] * 10, [3, 20, 1, 16]], ids=str)
@pytest.mark.parametrize("format", FORMATS)
@torch.no_grad()
def test_activations_in_8_bits(monkeypatch, format, pieces):
    module = build(WIDE)
    pack(module, FORMATS[format])
    tokens = text(WIDE, 2, sum(pieces))
    exact = module(tokens, module.new_state(2))
    with rounded_activations(monkeypatch):
        wanted = module(tokens, module.new_state(2))
    state = module.new_state(2)
    runtime = NativeRuntime(module, INT8)
    found = torch.cat([runtime(piece, state) for piece in tokens.split(pieces, 1)], 1)
    assert (found - exact).norm() <= 2 * (wanted - exact).norm()
    assert TOLERANCE < (wanted - exact).norm() / exact.norm() < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_golden_models_in_16_bits(name, dtype):
    module = copy.deepcopy(golden(name))
    cast(module, dtype)
    wide = copy.deepcopy(module)
    cast(wide, torch.float32)
    tokens = text(module.config, 2, 45)
    wanted = wide(tokens, wide.new_state(2))
    runtime = NativeRuntime(module)
    agree(runtime(tokens, module.new_state(2, dtype=torch.float32)), wanted)
    state = module.new_state(2)
    found = torch.cat([runtime(piece, state) for piece in tokens.split([1, 5, 39], 1)], 1)
    narrow = module(tokens, module.new_state(2)).float()
    assert (found - wanted).norm() <= (narrow - wanted).norm() + TOLERANCE * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mixer", ONE_OF_EACH)
@torch.no_grad()
def test_states_of_16_bits(mixer, dtype):
    """Little further from the exact result than the module that reads token by token, and so rounds its state most often."""
    module = build(alone(ONE_OF_EACH[mixer]))
    tokens, runtime = text(module.config, 2, 30), NativeRuntime(module, EXACT)
    wanted = module(tokens, module.new_state(2))

    def error(run, pieces):
        state = module.new_state(2, dtype=dtype)
        return (torch.cat([run(piece, state) for piece in tokens.split(pieces, 1)], 1) - wanted).norm()

    bound = 1.5 * error(module, 1) + TOLERANCE * wanted.norm()
    assert error(runtime, 1) <= bound and error(runtime, [1, 1, 8, 1, 19]) <= bound
