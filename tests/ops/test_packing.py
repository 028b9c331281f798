"""Layouts of few-bit weights: what is packed comes back, bit by bit where the layout says it lies."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanlm.ops import packing

SIZES = {"R": st.integers(1, 5), "n": st.integers(1, 70), "seed": st.integers(0, 2**31)}


def integers(low, high, *shape, seed, dtype=torch.uint8):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@settings(max_examples=40, deadline=None)
@given(**SIZES)
def test_codes_lie_where_a_little_endian_number_has_them(bits, R, n, seed):
    codes = integers(0, 2**bits, R, n, seed=seed)
    packed = packing.pack(codes, bits)
    assert packed.shape == (R, -(-n * bits // 8)) and packed.dtype == torch.uint8
    for row, stored in zip(codes.tolist(), packed):
        number = sum(code << (j * bits) for j, code in enumerate(row))
        assert bytes(stored.tolist()) == number.to_bytes(len(stored), "little")
    assert torch.equal(packing.unpack(packed, bits, n), codes)


@settings(max_examples=60, deadline=None)
@given(**SIZES)
def test_five_trits_in_a_byte(R, n, seed):
    trits = integers(-1, 2, R, n, seed=seed, dtype=torch.int8)
    packed = packing.pack_trits(trits)
    assert packed.shape == (R, -(-n // 5))
    for row, stored in zip(trits.tolist(), packed.tolist()):
        padded = [*row, *[0] * (-n % 5)]
        values = [sum((padded[5 * b + j] + 1) * 3 ** (4 - j) for j in range(5)) for b in range(len(stored))]
        assert stored == [-(-256 * v // 243) for v in values]
    assert torch.equal(packing.unpack_trits(packed, n), trits)


@settings(max_examples=60, deadline=None)
@given(**SIZES)
def test_trits_become_codes_without_being_unpacked(R, n, seed):
    trits = integers(-1, 2, R, n, seed=seed, dtype=torch.int8)
    assert torch.equal(packing.codes_of_trits(packing.pack_trits(trits), n), packing.pack((trits + 1).to(torch.uint8), 2))


def test_the_native_library_makes_the_same_codes():
    native = pytest.importorskip("leanlm.ops.native", reason="the native library was not built")
    for n in (*range(1, 70), 1000):
        packed = integers(0, 256, 3, -(-n // packing.TRITS), seed=n)  # also bytes that are no five trits
        assert torch.equal(native.codes_of_trits(packed, n), packing.codes_of_trits(packed, n)), n
    assert native.codes_of_trits(packed[:0], n).shape == (0, 250)


def test_trits_become_codes_in_bands(monkeypatch):
    monkeypatch.setattr(packing, "BAND", 3)
    packed = integers(0, 256, 7, 12, seed=0)  # also bytes that are no five trits
    codes = (packing.unpack_trits(packed, 60) + 1).to(torch.uint8)
    assert torch.equal(packing.codes_of_trits(packed, 60), packing.pack(codes, 2))


def test_every_byte_of_five_trits():
    every = torch.cartesian_prod(*[torch.arange(-1, 2, dtype=torch.int8)] * 5)
    assert len(packing.pack_trits(every).unique()) == 243
    assert torch.equal(packing.unpack_trits(packing.pack_trits(every), 5), every)


def banded(scales, along_rows, R=12, n=30, seed=0, dtype=torch.float16):
    """A ternary matrix with equal bands of these scales."""
    trits = integers(-1, 2, R, n, seed=seed, dtype=torch.int8)
    each = torch.tensor(scales, dtype=dtype).repeat_interleave((R if along_rows else n) // len(scales))
    return trits.to(dtype) * (each[:, None] if along_rows else each)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("along_rows", [True, False])
@pytest.mark.parametrize("shards", [1, 2, 3, 6])
def test_regions_are_found_in_the_values(shards, along_rows, dtype):
    scales = [0.011, 0.013, 0.0123, 0.011, 0.4, 7.0][:shards]
    weight = banded(scales, along_rows, dtype=dtype)
    found = packing.ternarise(weight)
    assert torch.equal(packing.ternary_values(*found), weight)
    assert found.scales.tolist() == torch.tensor(scales, dtype=dtype).tolist()
    assert found.along_rows == (along_rows or shards == 1)
    step = (12 if found.along_rows else 30) // shards
    assert found.starts.tolist() == [step * i for i in range(shards)]


def test_the_scale_is_a_magnitude_and_never_a_mean():
    weight = banded([0.03], True)
    weight[0] = 0
    weight[0, 0] = -0.03
    assert packing.ternarise(weight).scales.tolist() == [torch.tensor(0.03).half().item()]


def test_zeros_negative_zeros_and_empty_bands():
    weight = banded([0.5, 0.25, 2.0], True)
    weight[:2], weight[4:6], weight[-1] = 0, -0.0, 0  # at the start, in the middle, at the end
    found = packing.ternarise(weight)
    assert torch.equal(packing.ternary_values(*found), weight) and found.scales.tolist() == [0.5, 0.25, 2.0]
    nothing = packing.ternarise(torch.zeros(3, 4))
    assert torch.equal(packing.ternary_values(*nothing), torch.zeros(3, 4)) and len(nothing.scales) == 1


def test_what_is_not_ternary_is_not():
    weight = banded([0.5, 0.25], False)
    weight[3, 4] = 0.1
    assert packing.ternarise(weight) is None
    assert packing.ternarise(torch.randn(4, 9)) is None
    assert packing.ternarise(torch.tensor([[1.0, float("nan")], [0.0, 1.0]])) is None


@settings(max_examples=60, deadline=None)
@given(**SIZES, bands=st.integers(1, 8), along_rows=st.booleans())
def test_any_ternary_matrix_comes_back(R, n, seed, bands, along_rows):
    trits = integers(-1, 2, R, n, seed=seed, dtype=torch.int8)
    length = R if along_rows else n
    each = torch.rand(bands, generator=torch.Generator().manual_seed(seed))[integers(0, bands, length, seed=seed).long()]
    weight = trits * (each[:, None] if along_rows else each)
    assert torch.equal(packing.ternary_values(*packing.ternarise(weight)), weight)
