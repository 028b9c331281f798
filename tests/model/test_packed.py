"""Packed matrices in the place of float ones: same values, same logits, and untouched by casts."""

import copy

import pytest
import torch

from hybrid_models import ONE_OF_EACH, alone, build, text
from leanlm.errors import UsageError
from leanlm.model import packed
from leanlm.model.config import ModelConfig
from leanlm.model.format import Grouped, Ternary, parse
from leanlm.model.language_model import LanguageModel
from leanlm.model.linear import Linear
from leanlm.model.packed import GroupedWeight, TernaryWeight
from leanlm.ops import packing

FORMATS = [Grouped(b, g, s, o) for b in (2, 3, 4, 6, 8) for g in (0, 8) for s in (True, False) for o in (True, False)]


def grouped(format: Grouped, R=6, n=24, seed=0) -> GroupedWeight:
    generator = torch.Generator().manual_seed(seed)
    G = format.groups(n)
    codes = torch.randint(2**format.bits, (R, n), generator=generator, dtype=torch.uint8)
    zeros = torch.randint(2**format.bits, (R, G), generator=generator, dtype=torch.uint8)
    g_idx = torch.randint(G, (n,), generator=generator, dtype=torch.int32)
    scales = (torch.rand(R, G, generator=generator) / 50 + 0.001).half()
    return GroupedWeight.of(format, codes, scales, None if format.symmetric else zeros, None if format.ordered else g_idx)


def ternary(R=12, n=24, bands=3, along_rows=True, seed=0) -> TernaryWeight:
    generator = torch.Generator().manual_seed(seed)
    trits = torch.randint(-1, 2, (R, n), generator=generator, dtype=torch.int8)
    scales = torch.rand(bands, generator=generator).half()
    starts = torch.arange(bands, dtype=torch.int32) * ((R if along_rows else n) // bands)
    return TernaryWeight.of(packing.Trits(trits, scales, starts, along_rows))


def pack_all(model: LanguageModel, format: Grouped | None) -> None:
    """Every matrix, embedding and head among them, in a format (None: ternary) with random values."""
    for i, matrix in enumerate(model.matrices().values()):
        R, n = matrix.weight.shape
        weight = ternary(R, n, 1, seed=i) if format is None else grouped(format, R, n, seed=i)
        weight.scales.mul_(4 * n**-0.5 / (2**format.bits / 50 if format else 2))
        weight.dtype = matrix.weight.dtype
        matrix.hold(weight)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_values_are_scale_times_code_minus_zero(format):
    weight = grouped(format)
    n, G = 24, format.groups(24)
    for row in range(6):
        for column in range(n):
            group = column * G // n if format.ordered else int(weight.g_idx[column])
            zero = 2 ** (format.bits - 1) if format.symmetric else int(weight.zeros[row, group])
            value = float(weight.scales[row, group]) * (int(weight.unpacked()[row, column]) - zero)
            assert float(weight.dequantize(torch.float32)[row, column]) == value
    assert weight.bits * 6 * n == format.size(6, n) == 8 * sum(t.nbytes for t in weight.tensors.values())


@pytest.mark.parametrize("along_rows", [True, False])
def test_true_bits_of_ternary(along_rows):
    weight = ternary(along_rows=along_rows)
    assert weight.bits * 12 * 24 == weight.format.size(12, 24) == 8 * sum(t.nbytes for t in weight.tensors.values())
    assert Ternary("columns", 6).size(3072, 9216) / (3072 * 9216) < 2.001


@pytest.mark.parametrize("weight", [*map(grouped, FORMATS), ternary(), ternary(along_rows=False)], ids=lambda w: str(w.format))
def test_rows_split_and_stack_back(weight):
    parts = weight.split([1, 2, len(weight) - 3])
    whole = weight.dequantize()
    assert torch.equal(torch.cat([part.dequantize() for part in parts]), whole)
    assert packed.stack(parts).equal(weight)
    order = torch.randperm(len(weight))
    assert torch.equal(weight.take(order).dequantize(), whole[order])


def test_what_cannot_be_stacked_is_refused():
    for other in (grouped(Grouped(4, 8)), grouped(Grouped(3)), ternary(n=24), torch.zeros(2, 24)):
        with pytest.raises(UsageError, match="cannot be stacked"):
            packed.stack([grouped(Grouped(4)), other])
    with pytest.raises(UsageError, match="different scales along their columns"):
        packed.stack([ternary(along_rows=False), ternary(along_rows=False, seed=1)])


def test_casting_a_model_leaves_what_is_stored_alone():
    linear = Linear(24, 6, format=Grouped(4, 8))
    linear.hold(grouped(Grouped(4, 8)))
    stored = {name: tensor.clone() for name, tensor in linear.weight.tensors.items()}
    for dtype in (torch.bfloat16, torch.float64, torch.float16):
        linear.to(dtype)
        assert linear.weight.dtype == dtype == linear.weight.dequantize().dtype
        assert all(torch.equal(stored[name], tensor) for name, tensor in linear.weight.tensors.items())
        assert linear.weight.scales.dtype == torch.float16
    assert copy.deepcopy(linear).weight.equal(linear.weight)


def test_a_linear_layer_made_in_a_format():
    for format in (None, Grouped(3, 8), Grouped(6, 0, False, False), Ternary("columns", 2)):
        linear = Linear(24, 6, format=format)
        assert linear.format == format and tuple(linear.weight.shape) == (6, 24)
    with pytest.raises(ValueError, match="cannot replace"):
        linear.hold(grouped(Grouped(4), n=16))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("format", [None, Grouped(4), Grouped(8, 0, False), Grouped(3)], ids=str)
@pytest.mark.parametrize("mixer", ONE_OF_EACH)
def test_a_packed_model_is_its_dequantised_self_however_the_text_is_cut(mixer, format, tied):
    packed_model = build(alone(ONE_OF_EACH[mixer], tied=tied))
    pack_all(packed_model, format)
    float_model = build(packed_model.config)
    float_model.load_state_dict(dict(packed_model.named_parameters()), strict=False)
    for name, matrix in float_model.matrices().items():
        matrix.hold(packed_model.matrices()[name].dequantize())
    tokens = text(packed_model.config, 2, 9)
    with torch.no_grad():
        wanted = float_model(tokens)
        torch.testing.assert_close(packed_model(tokens), wanted, atol=0, rtol=0)
        state = packed_model.new_state(2)
        pieces = [packed_model(piece, state) for piece in tokens.split([4, 1, 4], 1)]
    scale = float(wanted.abs().max())
    torch.testing.assert_close(torch.cat(pieces, 1) / scale, wanted / scale, atol=3e-5, rtol=0)


def test_the_weights_of_a_model_name_packed_matrices_as_one():
    config: ModelConfig = alone(ONE_OF_EACH["mamba1"], tied=False)
    model = build(config)
    names = list(model.weights())
    assert names == [name for name, _ in model.named_parameters()]
    pack_all(model, Grouped(4))
    assert sorted(model.weights()) == sorted(names)
    assert sum(w.numel() for w in model.weights().values()) == sum(p.numel() for p in build(config).parameters())
    assert model.dtype == torch.float32 and model.half().dtype == torch.float16


def test_formats_by_name():
    assert parse("int4") == Grouped(4, 128) and parse("int3") == Grouped(3, 128)
    assert parse("int6") == Grouped(6) and parse("int8") == Grouped(8) and parse("int4-channel") == Grouped(4)
    assert parse("int4-g32-asym") == Grouped(4, 32, False)
    for format in (Grouped(4, 64), Grouped(8, 0, False), Grouped(3), Grouped(2, 128), Grouped(4, 0, False)):
        assert parse(str(format)) == format
    for wrong in ("int", "4", "int4-128", "int4-g", "q4_0", "INT4"):
        with pytest.raises(UsageError, match="no format"):
            parse(wrong)
    with pytest.raises(UsageError, match="5 bits"):
        parse("int5")
    with pytest.raises(UsageError, match=r"70 inputs .* groups of 128; choose one scale per output"):
        Grouped(4, 128).groups(70)
    with pytest.raises(UsageError, match="choose groups of 64 or 32"):
        Grouped(4, 128).groups(64 * 3)
