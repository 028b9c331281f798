"""Norms, gates, convolution, scans and attention of the native library against the reference, at random shapes.

B texts  L tokens  C channels  K taps  P head width  D width  M rows
"""

import pytest
import torch
import torch.nn.functional as F

from leanlm.ops import reference
from native_calls import DTYPES, LENGTHS, ROUNDING, Attend, Draw, Scan, Ssd, close, stride


@pytest.mark.parametrize("seed", range(12))
def test_norms(library, seed):
    draw = Draw(seed)
    M, D = draw.randint(1, 9), draw.choice([1, 7, 64, 250, 1024, 5000])
    x, weight, bias = draw.rows(M, D) + 1, draw.values(D), draw.values(D)
    y = torch.empty(M, D)
    library.norm(x, stride(x), y, D, M, D, weight, None, 1e-5)
    close(y, reference.rms_norm(x.double(), weight.double(), 1e-5))
    library.norm(x, stride(x), x, stride(x), M, D, weight, None, 1e-5)
    assert torch.equal(x, y), "in place"
    library.norm(x, stride(x), y, D, M, D, weight, bias, 1e-5)
    close(y, reference.layer_norm(x.double(), weight.double(), bias.double(), 1e-5))


@pytest.mark.parametrize("seed", range(12))
def test_gated_norm(library, seed):
    draw = Draw(seed)
    M, groups, before = draw.randint(1, 9), draw.choice([1, 2, 3, 8]), draw.random() < 0.5
    D = groups * draw.choice([1, 5, 32, 250, 2048])
    y, z, weight = draw.rows(M, D), draw.rows(M, D) * 3, draw.values(D)
    expected = reference.gated_norm(y.double(), z.double(), weight.double(), 1e-5, groups, before)
    library.gated_norm(y, stride(y), z, stride(z), M, D, weight, 1e-5, groups, before)
    close(y, expected)


ACTIVATIONS = [
    lambda x, z, bias: F.gelu(x),
    lambda x, z, bias: F.silu(x),
    lambda x, z, bias: F.silu(x) * z,
    lambda x, z, bias: x * F.silu(z + bias),
]


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("seed", range(4))
def test_activations(library, kind, seed):
    draw = Draw(seed)
    M, D = draw.randint(1, 9), draw.choice([1, 7, 64, 1000, 9000])
    x, z, bias = draw.rows(M, D) * 4, draw.rows(M, D), draw.values(D)
    expected = ACTIVATIONS[kind](x.double(), z.double(), bias.double())
    library.activate(kind, x, stride(x), z, stride(z), bias, x, stride(x), M, D)
    close(x, expected)


def test_activations_at_the_ends(library):
    """Each value is as exact as float32 allows, the smallest too, and nothing overflows."""
    x = torch.cat([torch.linspace(-80, 80, 4001), torch.tensor([-1e4, 1e4, 0.0, 1e-30])])
    for kind, bound in [(0, 1e-5), (1, 1e-6)]:
        y, expected = torch.empty_like(x), ACTIVATIONS[kind](x.double(), None, None)
        if kind == 0:
            expected = x.double() * torch.special.erfc(-x.double() / 2**0.5) / 2
        library.activate(kind, x, len(x), None, 0, None, y, len(x), 1, len(x))
        normal = expected.abs() > 1e-36
        assert ((y.double() - expected).abs() <= bound * expected.abs())[normal].all()
        assert y[~normal].abs().max() < 1e-35
    x[7] = torch.nan
    library.activate(1, x, len(x), None, 0, None, y, len(x), 1, len(x))
    assert y.isnan().nonzero().tolist() == [[7]]


@pytest.mark.parametrize("seed", range(24))
def test_conv(library, seed):
    draw = Draw(seed)
    B, L, C = draw.randint(1, 3), draw.choice(LENGTHS), draw.choice([1, 6, 64, 255, 300, 520])
    K, dtype, silu = draw.choice([1, 2, 3, 4, 4, 7]), draw.choice(list(DTYPES)), draw.random() < 0.5
    x, weight = draw.rows(B, L, C), draw.values(C, K)
    bias = draw.choice([None, draw.values(C)])
    tail = draw.values(B, C, K - 1).to(dtype)
    wide = None if bias is None else bias.double()
    expected, end = reference.conv(x.double(), weight.double(), wide, tail.double(), None, "silu" if silu else "identity")
    library.conv(x, stride(x), B, L, C, K, weight.t().contiguous(), bias, tail, DTYPES[dtype], silu)
    close(x, expected)
    assert torch.equal(tail, end.to(torch.float32).to(dtype))


@pytest.mark.parametrize("seed", range(60))
def test_ssd(library, seed):
    call = Ssd(Draw(seed))
    y, state = call.run(library)
    expected, end = call.expected()
    close(y, expected)
    close(state, end, ROUNDING[call.dtype])


@pytest.mark.parametrize("seed", range(12))
def test_ssd_continues(library, seed):
    draw = Draw(seed)
    call = Ssd(draw, dtype=torch.float32, L=draw.choice([20, 130, 300]))
    cuts = sorted(draw.sample(range(1, call.L), 4))
    for whole, cut in zip(call.run(library), call.run(library, cuts), strict=True):
        close(cut, whole)


def test_ssd_after_a_strong_decay(library):
    """The digits of weak decays survive a strong one earlier in their chunk."""
    call = Ssd(Draw(0), dtype=torch.float32, L=64, mode=0, clamp=(0.0, float("inf")))
    call.a[:, 3] = 1e5
    call.a[:, 4:] -= 6
    y, state = call.run(library)
    expected, end = call.expected()
    close(y[:, 4:], expected[:, 4:])
    close(state, end)


@pytest.mark.parametrize("seed", range(60))
def test_scan(library, seed):
    call = Scan(Draw(seed))
    y, state = call.run(library)
    expected, end = call.expected()
    close(y, expected)
    close(state, end, ROUNDING[call.dtype])


@pytest.mark.parametrize("seed", range(12))
def test_scan_continues(library, seed):
    draw = Draw(seed)
    call = Scan(draw, dtype=torch.float32, L=draw.choice([20, 130]))
    cuts = sorted(draw.sample(range(1, call.L), 4))
    for whole, cut in zip(call.run(library), call.run(library, cuts), strict=True):
        close(cut, whole)


@pytest.mark.parametrize("seed", range(12))
def test_rotate(library, seed):
    draw = Draw(seed)
    B, L, heads, P = draw.randint(1, 3), draw.randint(1, 20), draw.randint(1, 5), draw.choice([2, 6, 64, 80])
    R = draw.randrange(2, P + 1, 2)
    x, freq = draw.rows(B, L, heads * P), 10000.0 ** (-torch.arange(0, R, 2) / R)
    position = torch.tensor([draw.randint(0, 200000) for _ in range(B)])
    start = draw.choice([None, torch.tensor([draw.randint(0, int(p)) for p in position])])
    begun = 0 if start is None else start[:, None]
    angles = ((position[:, None] - begun + torch.arange(L))[..., None].float() * freq).double()
    expected = reference.rotate(x.double().view(B, L, heads, P), angles.cos(), angles.sin()).flatten(2)
    library.rotate(x, stride(x), B, L, heads, P, R, freq, position, start)
    close(x, expected, 1e-6)


@pytest.mark.parametrize("seed", range(100))
def test_attend(library, seed):
    call = Attend(Draw(seed))
    y, caches = call.run(library)
    expected, held = call.expected()
    close(y, expected)
    for b, read in enumerate(call.position.tolist()):
        at = torch.arange(max(0, read + call.L - call.slots), read + call.L)
        assert torch.equal(caches[:, b, at % call.slots], held[:, b, at])


@pytest.mark.parametrize("seed", range(20))
def test_attend_continues(library, seed):
    draw = Draw(seed)
    call = Attend(draw, L=draw.choice([20, 130]))
    cuts = sorted(draw.sample(range(1, call.L), 4))
    whole, cut = call.run(library), call.run(library, cuts)
    close(cut[0], whole[0])
    assert torch.equal(cut[1].nan_to_num(), whole[1].nan_to_num())


@pytest.mark.parametrize("kind", [Ssd, Scan, Attend])
@pytest.mark.parametrize("L", [1, 2, 70])
def test_threads_do_not_matter(library, kind, L):
    call, before = kind(Draw(L), L=L), library.functions.leanlm_threads()
    runs = []
    for threads in (1, 2, 5):
        library.set_threads(threads)
        runs.append(call.run(library))
    library.set_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(run, runs[0], strict=True))
