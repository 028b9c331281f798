"""GGUF blocks of our integers, read back by our own reader, the gguf package, and llama.cpp's own code."""

import ctypes

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanlm.errors import UsageError
from leanlm.export import gguf_blocks, gguf_rounding
from leanlm.export.gguf_types import FLOATS, QUANTISED, TYPES
from leanlm.model.format import Grouped
from leanlm.model.packed import GroupedWeight
from packed_matrices import grouped, ternary

gguf = pytest.importorskip("gguf")


def matrices():
    """Packed matrices of every kind; widths that some blocks fit and others do not."""
    sizes = {"R": st.integers(1, 5), "n": st.sampled_from((64, 128, 256, 512, 96)), "seed": st.integers(0, 99)}
    bits, group = st.sampled_from((2, 3, 4, 6, 8)), st.sampled_from((0, 32))
    symmetric, low = st.booleans(), st.sampled_from((0, 2))
    starts = st.sampled_from(((0,), (0, 32), (0, 64)))
    bands = st.builds(ternary, st.just(5), sizes["n"], starts=st.sampled_from(((0,), (0, 2, 3))), seed=sizes["seed"])
    columns = st.builds(ternary, sizes["R"], sizes["n"], starts=starts, along_rows=st.just(False), seed=sizes["seed"])
    return st.one_of(st.builds(grouped, **sizes, bits=bits, group=group, symmetric=symmetric, low=low), bands, columns)


@settings(max_examples=60, deadline=None)
@given(matrices(), st.sampled_from(sorted(TYPES)))
def test_a_block_holds_the_very_values_or_refuses_with_a_reason(weight, name):
    type, values = TYPES[name], weight.dequantize(torch.float32)
    if reason := gguf_blocks.refusal(weight, type):
        with pytest.raises(UsageError, match=name):
            gguf_blocks.write(weight, type)
        if "divide" not in reason:  # a refusal is not for nothing: what rounding makes of it differs, or may
            assert gguf_rounding.rounded(weight, type).dtype == np.uint8
        return
    data = gguf_blocks.write(weight, type)
    assert torch.equal(gguf_blocks.read(data, type, weight.shape), values)
    if type in QUANTISED and name != "Q2_0":  # which the package does not know
        assert np.array_equal(gguf.quants.dequantize(data, gguf.GGMLQuantizationType(type.code)), values.numpy())


class Traits(ctypes.Structure):
    """The beginning of ggml's ggml_type_traits."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("interleave", ctypes.c_int64),
        ("nbytes", ctypes.c_size_t),
        ("quantised", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


@pytest.mark.parametrize("type", QUANTISED, ids=lambda type: type.name)
def test_llama_cpp_reads_the_blocks_as_we_do(type):
    pytest.importorskip("llama_cpp")
    from llama_cpp._ggml import libggml

    libggml.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    traits = libggml.ggml_get_type_traits(type.code).contents
    assert (traits.name.decode().upper(), traits.block, traits.nbytes) == (type.name, type.block, type.nbytes)
    bits = {-1: 2, -8: 4, -32: 6, -128: 8}[type.low]
    weight = ternary(3, 512, starts=(0, 2)) if bits == 2 else grouped(3, 512, bits)
    data, values = gguf_blocks.write(weight, type), np.empty((3, 512), np.float32)
    traits.to_float(data.ctypes.data, values.ctypes.data, values.size)
    assert np.array_equal(values, weight.dequantize(torch.float32).numpy())


def test_random_bytes_are_read_as_the_package_reads_them():
    """Q6_K with sub-scales of every size, negative scales, and codes that we never write."""
    noise = np.random.default_rng(0)
    for type in QUANTISED:
        if type.name == "Q2_0":
            continue
        data = noise.integers(0, 256, (40, type.nbytes), dtype=np.uint8)
        at = slice(0, 2) if type.name in ("Q4_0", "Q8_0") else slice(type.nbytes - 2, type.nbytes)
        data[:, at] = noise.normal(size=40).astype(np.float16)[:, None].view(np.uint8)
        theirs = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(type.code))
        ours = gguf_blocks.read(data, type, (40, type.block)).numpy()
        if type.name.startswith("TQ1"):  # bytes that stand for no five trits may be read in any way
            continue
        assert np.array_equal(ours, theirs), type.name


def test_the_1_1b_shape_is_refused_for_256_blocks_and_exact_in_finer_ones():
    weight = ternary(64, 1792, starts=(0, 896), along_rows=False)
    for name in ("TQ1_0", "TQ2_0"):
        reason = gguf_blocks.refusal(weight, TYPES[name])
        assert reason == "columns 768 to 1023 are one block and hold two scales, which meet at column 896"
    assert gguf_blocks.holding(weight) == ["Q2_0", "Q4_0", "Q8_0"]
    data = gguf_blocks.write(weight, TYPES["Q4_0"])
    theirs = gguf.quants.dequantize(data, gguf.GGMLQuantizationType.Q4_0)
    assert np.array_equal(theirs, weight.dequantize(torch.float32).numpy())


def test_reasons_say_what_is_wrong():
    def reason(weight, name):
        return gguf_blocks.refusal(weight, TYPES[name])

    assert "rows of 96 weights do not divide into blocks of 256" in reason(ternary(2, 96), "TQ2_0")
    assert "run from -128 to" in reason(grouped(8, 256, 8), "Q4_0") and "holds -8 to 7" in reason(grouped(8, 256, 8), "Q4_0")
    assert "zeros of their own" in reason(grouped(8, 64, 4, 32, symmetric=False), "Q4_0")
    assert "two scales" in reason(grouped(2, 256, 4, 32, ordered=False), "Q4_0")
    fine = GroupedWeight.of(Grouped(4), torch.full((1, 32), 9, dtype=torch.uint8), torch.tensor([[0.1]]))
    assert "0.1 is no half-precision number" in reason(fine, "Q4_0")
    assert "floating point" in reason(torch.ones(2, 32), "Q8_0")
    assert reason(torch.tensor([[1.0, 1 / 3]]), "F16") == "1 of its 2 values would be rounded"
    assert reason(torch.tensor([[1.0, float("nan")]]), "F32") is not None


def test_equal_scales_may_meet_in_a_block():
    weight = grouped(2, 256, 8, 128)
    alike = GroupedWeight(weight.format, 256, weight.codes, weight.scales[:, :1].repeat(1, 2))
    assert gguf_blocks.refusal(weight, TYPES["Q8_0"]) is None and gguf_blocks.refusal(alike, TYPES["Q8_0"]) is None
    six = grouped(2, 256, 6, 128)
    assert gguf_blocks.refusal(six, TYPES["Q6_K"]) is not None
    assert gguf_blocks.refusal(GroupedWeight(six.format, 256, six.codes, six.scales[:, :1].repeat(1, 2)), TYPES["Q6_K"]) is None


def test_bands_make_no_difference(monkeypatch):
    weight, floats = grouped(7, 256, 4), torch.randn(7, 256)
    whole = gguf_blocks.write(weight, TYPES["Q4_0"]), gguf_blocks.write(floats, TYPES["F32"])
    monkeypatch.setattr(gguf_blocks, "BAND", 512)
    assert np.array_equal(whole[0], gguf_blocks.write(weight, TYPES["Q4_0"]))
    assert np.array_equal(whole[1], gguf_blocks.write(floats, TYPES["F32"]))


@pytest.mark.parametrize("type", FLOATS, ids=lambda type: type.name)
def test_floats_keep_every_bit(type):
    for values in (torch.randn(5, 7).to(type.dtype), torch.randn(9).to(type.dtype)):
        data = gguf_blocks.write(values, type)
        assert torch.equal(gguf_blocks.read(data, type, values.shape), values.float())


@pytest.mark.parametrize(("name", "worst"), [("Q8_0", 0.006), ("Q6_K", 0.025), ("Q4_0", 0.1), ("TQ2_0", 0.6), ("Q2_0", 0.6)])
def test_rounding_is_to_the_nearest(name, worst):
    """A random matrix: errors as large as the step of the type allows (relative to a typical largest weight), no larger."""
    weight = torch.randn(16, 512, generator=torch.Generator().manual_seed(0))
    type = TYPES[name]
    values = gguf_blocks.read(gguf_rounding.rounded(weight, type), type, weight.shape)
    assert float((values - weight).abs().max() / weight.abs().max()) < worst


def test_rounding_keeps_a_block_of_zeros():
    for type in QUANTISED:
        data = gguf_rounding.rounded(torch.zeros(1, 256), type)
        assert not gguf_blocks.read(data, type, (1, 256)).any()
