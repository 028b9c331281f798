"""Random calls of every kernel, and random models in random formats, against the reference.

A case is its seed: `pytest "tests/runtime/test_fuzz.py::test_kernels[17]"` repeats one, `--fuzz-first 5000` runs others. A
seed of `test_models` stands for MODELS models; the one that fails is printed.
"""

import ctypes
import random

import pytest
import torch
from comparison import agree
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from hybrid_models import build, cut_texts, hybrids, text
from leanlm.api import cast
from leanlm.model.format import Grouped, Ternary
from leanlm.model.language_model import LanguageModel
from leanlm.model.state import State
from leanlm.ops import reference
from leanlm.ops.merging import Cache, Reading
from native_calls import DTYPES, ROUNDING, Attend, Draw, Scan, Ssd, close, stride
from native_library import opened
from native_products import Matmul
from packed_models import packed

pytest.importorskip("leanlm.runtime.native", reason="the native library was not built")
from leanlm.ops.native import EXACT
from leanlm.runtime import steps
from leanlm.runtime.native import NativeRuntime
from leanlm.slots import Table

KERNELS, SEEDS, MODELS = 1600, 20, 25  # cases of kernels; seeds of models, and models of each


def pytest_generate_tests(metafunc):
    first = metafunc.config.getoption("fuzz_first")
    count = KERNELS if metafunc.function is test_kernels else SEEDS
    metafunc.parametrize("number", range(first, first + count))


def check_ssd(draw: Draw, native, library) -> None:
    call = Ssd(draw, L=draw.choice([1, 2, 9, 40, 70]), P=draw.randint(1, 20), N=draw.randint(1, 20))
    for found, wanted, tolerance in zip(call.run(library), call.expected(), (2e-5, ROUNDING[call.dtype] + 1e-5), strict=True):
        close(found, wanted, tolerance)


def check_scan(draw: Draw, native, library) -> None:
    call = Scan(draw, L=draw.choice([1, 2, 9, 40]), I=draw.randint(1, 70), N=draw.randint(1, 20))
    for found, wanted, tolerance in zip(call.run(library), call.expected(), (2e-5, ROUNDING[call.dtype] + 1e-5), strict=True):
        close(found, wanted, tolerance)


def check_attend(draw: Draw, native, library) -> None:
    call = Attend(draw, L=draw.choice([1, 1, 2, 9, 40]), P=draw.randint(1, 40), read=draw.choice([0, 3, 60]))
    y, _ = call.run(library)
    close(y, call.expected()[0], 2e-5)


def check_conv(draw: Draw, native, library) -> None:
    B, L, C, K = draw.randint(1, 3), draw.randint(1, 12), draw.randint(1, 80), draw.randint(1, 6)
    x, weight, bias, dtype = (
        draw.rows(B, L, C),
        draw.values(C, K),
        draw.choice([None, draw.values(C)]),
        draw.choice(list(DTYPES)),
    )
    tail, silu = draw.values(B, C, K - 1).to(dtype), draw.random() < 0.5
    wide = None if bias is None else bias.double()
    wanted, end = reference.conv(x.double(), weight.double(), wide, tail.double(), None, "silu" if silu else "identity")
    library.conv(x, stride(x), B, L, C, K, weight.t().contiguous(), bias, tail, DTYPES[dtype], silu)
    close(x, wanted)
    assert torch.equal(tail, end.float().to(dtype))


def check_norm(draw: Draw, native, library) -> None:
    M, groups, D = draw.randint(1, 5), draw.randint(1, 4), draw.randint(1, 70)
    x, weight, bias = draw.rows(M, D), draw.values(D), draw.choice([None, draw.values(D)])
    y = torch.empty(M, D)
    library.norm(x, stride(x), y, D, M, D, weight, bias, 1e-5)
    wide = x.double(), weight.double()
    close(y, reference.rms_norm(*wide, 1e-5) if bias is None else reference.layer_norm(*wide, bias.double(), 1e-5), 1e-4)
    y, z, weight, before = draw.rows(M, groups * D), draw.rows(M, groups * D), draw.values(groups * D), draw.random() < 0.5
    wanted = reference.gated_norm(y.double(), z.double(), weight.double(), 1e-5, groups, before)
    library.gated_norm(y, stride(y), z, stride(z), M, groups * D, weight, 1e-5, groups, before)
    close(y, wanted)


def check_rotate(draw: Draw, native, library) -> None:
    B, L, heads, P = draw.randint(1, 3), draw.randint(1, 9), draw.randint(1, 4), draw.randint(2, 40)
    R = draw.randrange(2, P + 1, 2)
    x, freq = draw.rows(B, L, heads * P), 500.0 ** (-torch.arange(0, R, 2) / R)
    position = torch.tensor([draw.randint(0, 10000) for _ in range(B)])
    start = draw.choice([None, torch.tensor([draw.randint(0, int(p)) for p in position])])
    begun = 0 if start is None else start[:, None]
    angles = ((position[:, None] - begun + torch.arange(L))[..., None].float() * freq).double()
    wanted = reference.rotate(x.double().view(B, L, heads, P), angles.cos(), angles.sin()).flatten(2)
    library.rotate(x, stride(x), B, L, heads, P, R, freq, position, start)
    close(x, wanted, 1e-6)


def check_telescope(draw: Draw, native, library) -> None:
    """A text read in two calls, in which documents begin again."""
    B, G, P, Q, slots = draw.randint(1, 3), draw.randint(1, 3), draw.randint(1, 40), draw.randint(1, 40), draw.randint(3, 50)
    H, lengths = G * draw.randint(1, 3), (draw.randint(0, 50), draw.choice([1, 1, 2, 50]))
    table = Table(slots, tuple(sorted(draw.sample(range(2, slots), draw.randint(1, min(6, slots - 2))))))
    norms = [draw.choice([None, draw.values(width)]) for width in (P, Q)]
    flags = [draw.random() < 0.5 for _ in range(2)]
    reading = Reading(
        table, P**-0.5, draw.choice([None, None, 0.5]), *norms, 1e-5, flags[0], draw.choice([None, 2.0]), flags[1]
    )
    merges, begun, read = torch.tensor(table.merges, dtype=torch.int32), torch.tensor([0] * B), torch.tensor([0] * B)
    held = Cache(torch.zeros(B, slots, G, P), torch.zeros(B, slots, G, Q), torch.full((B, slots, G), -torch.inf), None)
    wanted_held = Cache(*(None if part is None else part.double() for part in held))
    for L in filter(None, lengths):
        q, k, v, weights = draw.rows(B, L, H * P), draw.rows(B, L, G * P), draw.rows(B, L, G * Q), draw.rows(B, L, G)
        y = torch.empty(B, L, H * Q)
        new = (t.double().unflatten(2, (-1, width)) for t, width in ((q, P), (k, P), (v, Q)))
        wanted, wanted_held = reference.telescope(*new, weights.double(), None, wanted_held, read, None, reading)
        rows = (steps.Rows(t.data_ptr(), stride(t)) for t in (q, k, v, y, weights))
        call = steps.Telescoping(
            *rows,
            merges.data_ptr(),
            *(None if norm is None else norm.data_ptr() for norm in norms),
            *(len(merges), slots, H, G, P, Q, steps.LEARNED, *flags),
            *(reading.scale, reading.factor or 0, reading.eps, reading.cap or 0),
        )
        library.telescope(ctypes.addressof(call), B, L, read, begun, *held)
        close(y, wanted.flatten(2), 1e-4)
        read += L
    for found, part in zip(held[:2], wanted_held):
        close(found, part, 1e-4)


def check_matmul(draw: Draw, native, library) -> None:
    Matmul(draw).check(native)


CHECKS = [check_matmul] * 5 + [check_ssd, check_scan, check_attend, check_conv, check_norm, check_rotate, check_telescope]


def test_kernels(native, number):
    draw = Draw(number)
    draw.choice(CHECKS)(draw, native, opened(str(native.path())))


def formats(chance: random.Random, n: int):
    """A format that a matrix of n columns may have, or None for float."""
    groups = [group for group in (3, 5, 6, 7, 8, 16, 32) if n % group == 0]
    grouped = Grouped(chance.choice([2, 3, 4, 6, 8]), chance.choice([0, *groups]), chance.random() < 0.5)
    shuffled = [Grouped(4, chance.choice(groups), True, False)] if groups else []
    return chance.choice([None, grouped, Ternary("rows", 2), Ternary("columns", min(n, 2)), *shuffled])


def random_formats(module: LanguageModel, chance: random.Random) -> None:
    """In place: some matrices packed, those left narrowed, or not."""
    for matrix in module.matrices().values():
        R, n = matrix.weight.shape
        format = formats(chance, n)
        if format is not None and min(R, n) > 1:
            matrix.hold(packed(format, R, n, chance.randrange(1000)))
    cast(module, chance.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16]))


def begun(module: LanguageModel, lengths: list[int], dtype: torch.dtype) -> State:
    """A state whose rows have read texts of these lengths; every tensor of it in this dtype."""
    whole = module.new_state(len(lengths), dtype=dtype)
    for row, length in enumerate(lengths):
        state = module.new_state(1)
        module(text(module.config, 1, length, seed=row), state)
        whole.write([row], state)
    for memory in filter(None, whole.memories):
        memory |= {name: tensor.to(dtype) for name, tensor in memory.items() if tensor.is_floating_point()}
    return whole


@torch.no_grad()
def check_model(config, cut, lengths, dtype, number) -> None:
    """Pieces read natively or by the module, in turn, beside the module in float32, which reads all of it at once."""
    chance, (length, pieces) = random.Random(number), cut
    module, wide = build(config, number), build(config, number)
    random_formats(module, chance)
    wide.load_state_dict(
        {name: w.detach().float() for name, w in module.state_dict().items() if not name.endswith((".codes", ".scales"))},
        strict=False,
    )
    for name, matrix in wide.matrices().items():
        matrix.hold(module.matrices()[name].dequantize().float())
    tokens, runtime = text(config, len(lengths), length, seed=number), NativeRuntime(module, EXACT)
    mine, theirs = begun(wide, lengths, dtype), begun(wide, lengths, torch.float32)
    wanted = wide(tokens, theirs)
    runs = [wide if dtype == torch.float32 and chance.random() < 0.3 else runtime for _ in pieces]
    found = torch.cat([run(piece, mine) for run, piece in zip(runs, tokens.split(pieces, 1), strict=True)], 1)
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    agree(found, wanted, tolerance)
    assert mine.position.tolist() == theirs.position.tolist()
    for (name, a), b in zip(mine.tensors().items(), theirs.tensors().values(), strict=True):
        assert a.dtype == (dtype if b.is_floating_point() else b.dtype), name
        agree(a.float(), b.float(), tolerance)


def test_models(number):
    @seed(number)
    @settings(
        max_examples=MODELS, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(
        hybrids(),
        cut_texts(60),
        st.lists(st.integers(1, 30), min_size=1, max_size=4),
        st.sampled_from([torch.float32, torch.float32, torch.bfloat16]),
        st.integers(0, 1000),
    )
    def check(config, cut, lengths, dtype, number):
        check_model(config, cut, lengths, dtype, number)

    check()
