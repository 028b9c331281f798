"""Products of the native library against float64 products of the dequantised weights: all formats, sizes, instruction sets."""

import ctypes
import mmap
import random

import pytest
import torch

from leanlm.ops import packing
from packed_matrices import grouped, ternary

BITS = (2, 3, 4, 6, 8)
BOUNDS = {0: 1e-5, 1: 0.05}  # of the error, by precision (exact, int8 activations)
CASES = 60  # of each kind and instruction set


def error(y: torch.Tensor, wanted: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> float:
    """The largest difference, in units of what a product of such a row of x with the largest row of the weight typically is."""
    size = x.double().norm(dim=-1)[:, None] * weight.double().norm(dim=-1).max() / weight.shape[1] ** 0.5
    return ((y - wanted).abs() / (size + wanted.abs() + 1e-30)).max().item()


def check(native, weight, x, precisions=(0, 1), bias=None):
    dense = weight.double() if isinstance(weight, torch.Tensor) else weight.dequantize(torch.float32).double()
    wanted = x.double() @ dense.T + (0 if bias is None else bias.double())
    for precision in precisions:
        y = native.matmul(native.weight_of(weight), x, bias, precision)
        assert error(y, wanted, x, dense) < BOUNDS[precision], (weight, x.shape, precision)


def activations(chance: random.Random, M: int, n: int) -> torch.Tensor:
    x = torch.randn(M, n, generator=torch.Generator().manual_seed(chance.randrange(1 << 30)))
    return chance.choice([x, x.abs(), x * torch.logspace(-6, 6, M)[:, None], x * (torch.arange(n) % 7 == 3)])


def rows(chance: random.Random) -> int:
    return chance.choice([1, 1, 2, 3, 4, chance.randint(5, 40)])


@pytest.mark.parametrize("bits", BITS)
def test_grouped_products(native, isa, bits):
    chance = random.Random(bits)
    for seed in range(CASES):
        group = chance.choice([0, 0, 7, 8, 32, 32, 64, 96, 128, 128, 160])
        n = group * chance.randint(1, 7) if group else chance.choice([1, 5, 31, 64, 127, 130, 512, chance.randint(1, 700)])
        R = chance.choice([1, 3, 16, 17, chance.randint(1, 120)])
        ordered = group == 0 or chance.random() < 0.8
        weight = grouped(R, n, bits, group, chance.random() < 0.6, ordered, seed)
        bias = torch.randn(R) if chance.random() < 0.5 else None
        check(native, weight, activations(chance, rows(chance), n), bias=bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scales_of_every_dtype(native, isa, dtype):
    weight = grouped(20, 256, 4, 64, symmetric=False)
    weight.scales = weight.scales.to(dtype)
    check(native, weight, torch.randn(3, 256))


def test_ternary_products(native, isa):
    chance = random.Random(3)
    for seed in range(2 * CASES):
        R, n = chance.randint(1, 90), chance.choice([1, 6, 128, 131, 384, chance.randint(1, 900)])
        along_rows = chance.random() < 0.5
        extent = R if along_rows else n
        inner = sorted(chance.sample(range(1, extent), min(extent - 1, chance.randint(0, 4))))
        dtype = chance.choice([torch.float16, torch.bfloat16, torch.float32])
        weight = ternary(R, n, (0, *inner), along_rows, seed, dtype)
        x = activations(chance, rows(chance), n)
        dense = packing.ternary_values(weight.unpacked().float(), weight.scales.float(), weight.starts, along_rows)
        for precision, bound in BOUNDS.items():
            y = native.matmul(native.weight_of(weight), x, None, precision)
            assert error(y, x.double() @ dense.double().T, x, dense) < bound, (R, n, weight.starts, x.shape, precision)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_float_products(native, isa, dtype):
    chance = random.Random(5)
    for _ in range(CASES):
        R, n = chance.randint(1, 130), chance.choice([1, 16, 33, chance.randint(1, 1200)])
        weight = torch.randn(R, n).to(dtype)
        check(native, weight, activations(chance, rows(chance), n), (native.EXACT,), torch.randn(R))


def test_many_rows_and_strides(native, isa):
    """More rows than one pass takes; x and the weight being columns of something wider; y added to."""
    wide, held = torch.randn(600, 90), torch.randn(50, 100)
    x, weight = wide[:, 3:80], held[:, :77]
    check(native, weight, x, (native.EXACT,))
    y = torch.ones(600, 60)
    lib, bias = native.library(), torch.randn(50)
    w = native.weight_of(weight)
    product = native.Product(w, y.data_ptr(), 60, bias.data_ptr(), 1)
    assert not lib.leanlm_matmul(product, 1, x.data_ptr(), 90, 600, native.EXACT)
    torch.testing.assert_close(y[:, :50], 1 + x @ weight.T + bias, rtol=1e-4, atol=1e-4)
    assert (y[:, 50:] == 1).all()


@pytest.mark.parametrize("M", [1, 2, 5, 40])
def test_threads_do_not_change_a_result(native, isa, threads, M):
    made = [grouped(333, 384, bits, 64) for bits in BITS] + [ternary(700, 500, (0, 211)), torch.randn(300, 100).bfloat16()]
    for weight in made:
        x = torch.randn(M, weight.shape[1])
        for precision in (native.EXACT, native.INT8):
            results = []
            for count in (1, 2, 3):
                threads(count)
                results.append(native.matmul(native.weight_of(weight), x, None, precision))
            assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_rows_of_tables(native, isa):
    tables = [grouped(40, 96, bits, 32, symmetric=False) for bits in BITS]
    tables += [grouped(40, 96, 4, 32, ordered=False), ternary(40, 77, (0, 9, 30)), ternary(40, 77, (0, 9, 30), False)]
    tables += [torch.randn(40, 51).to(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)]
    tokens = torch.tensor([[3, 39, 0], [3, 7, 21]])
    for table in tables:
        dense = table.float() if isinstance(table, torch.Tensor) else table.dequantize(torch.float32)
        torch.testing.assert_close(native.embed(native.weight_of(table), tokens), dense[tokens], rtol=1e-6, atol=0)


def test_what_is_not_finite_stays_visible(native, isa):
    x = torch.randn(2, 128)
    x[0, 40], x[1, 7] = float("nan"), float("inf")
    for weight in (grouped(5, 128, 4, 32), grouped(5, 128, 8), ternary(5, 128), torch.randn(5, 128)):
        for precision in (native.EXACT, native.INT8):
            assert not native.matmul(native.weight_of(weight), x, None, precision).isfinite().any()


def test_nothing_is_read_beyond_the_codes(native, isa):
    """The codes end where a page ends that is followed by one which must not be read."""
    libc, page = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE
    for weight in [grouped(7, 32 * 9, bits, 32) for bits in BITS] + [ternary(7, 131), ternary(7, 256)]:
        size = weight.codes.numel()
        pages = mmap.mmap(-1, 2 * page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        held = torch.frombuffer(pages, dtype=torch.uint8)[page - size : page].view(weight.codes.shape)
        held.copy_(weight.codes)
        weight.codes = held
        assert libc.mprotect(ctypes.c_void_p(start + page), page, 0) == 0
        for M in (1, 2, 9):
            check(native, weight, torch.randn(M, weight.shape[1]))


def test_the_operations_take_what_leanlm_ops_takes(native, isa):
    x = torch.randn(2, 3, 64, dtype=torch.bfloat16)
    four, three = grouped(9, 64, 4, 32), ternary(9, 64)
    pairs = [
        (native.grouped_linear(x, four.codes, four.scales, four.zeros, four.g_idx, 4), four),
        (native.ternary_linear(x, three.codes, three.scales, three.starts, True), three),
    ]
    for y, weight in pairs:
        assert y.dtype == x.dtype and y.shape == (2, 3, 9)
        torch.testing.assert_close(y.float(), x.float() @ weight.dequantize(torch.float32).T, rtol=0.02, atol=0.02)
    weight = torch.randn(9, 64)
    torch.testing.assert_close(native.linear(x.float(), weight), x.float() @ weight.T, rtol=1e-4, atol=1e-4)


def test_memory_is_read_whole(native, isa):
    """What is read is summed in words of eight bytes, and the rest of fewer than 128 bytes byte by byte."""
    data = torch.randint(0, 1 << 20, (400_003,))
    whole = len(data) // 16 * 16
    rest = data[whole:].view(torch.uint8).sum().item()
    assert native.library().leanlm_read(data.data_ptr(), data.nbytes) == data[:whole].sum().item() + rest
