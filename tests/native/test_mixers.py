"""Norms, gates, convolution, scans and attention of the native library against the reference, at random shapes.

B texts  L tokens  C channels  K taps  H heads  P head width  G groups  N state width  I inner channels  D width
"""

import random

import pytest
import torch
import torch.nn.functional as F

from leanlm.ops import reference

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}
LENGTHS = [1, 1, 2, 3, 5, 8, 9, 31, 63, 64, 65, 130, 300]


class Draw(random.Random):
    """Random shapes and values of one seed."""

    def __init__(self, seed: int):
        super().__init__(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def values(self, *shape, scale=1.0):
        return torch.randn(*shape, generator=self.generator) * scale

    def rows(self, *shape):
        """Values [..., D] whose rows lie further apart than they are long, as parts of a projection do."""
        return self.values(*shape[:-1], shape[-1] + self.choice([0, 3, 16]))[..., : shape[-1]]


def close(actual, expected, tolerance=1e-5):
    expected = expected.to(torch.float64)
    error = (actual.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
    assert error <= tolerance, f"off by {float(error):.2g} of the largest value"


def stride(x):
    return x.stride(-2)


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
    library.conv(x, stride(x), B, L, C, K, weight, bias, tail, DTYPES[dtype], silu)
    close(x, expected)
    assert torch.equal(tail, end.to(torch.float32).to(dtype))


class Ssd:
    """A random call of leanlm_ssd, to be run whole or in pieces."""

    def __init__(self, draw: Draw, dtype=None, **sizes):
        self.B, self.L = draw.randint(1, 3), draw.choice(LENGTHS)
        self.G, self.P, self.N = draw.choice([1, 2, 3]), draw.choice([1, 3, 16, 33, 64]), draw.choice([1, 5, 16, 37, 128])
        self.mode, self.clamp = draw.choice([0, 1]), draw.choice([(0.0, float("inf")), (0.3, 0.9)])
        self.__dict__.update(sizes)
        self.H = self.G * draw.choice([1, 2, 4])
        B, L, H, P = self.B, self.L, self.H, self.P
        self.x = draw.rows(B, L, H * P)
        self.Bm, self.Cm = draw.rows(B, L, self.G * self.N), draw.rows(B, L, self.G * self.N)
        self.a = draw.rows(B, L, H) * draw.choice([1, 8])
        self.A, self.dt_bias = -draw.values(H).exp(), draw.values(H)
        self.D = draw.choice([None, draw.values(H), draw.values(H * P)])
        self.dtype = dtype or draw.choice([torch.float32, torch.bfloat16])
        self.state = draw.values(B, H, P, self.N).to(self.dtype)

    def expected(self):
        B, L, H, P, G, N = self.B, self.L, self.H, self.P, self.G, self.N
        x, Bm, Cm, a = (t.double() for t in (self.x, self.Bm, self.Cm, self.a))
        x = x.view(B, L, H, P)
        dt, log_decay = torch.ones_like(a), -F.softplus(a)
        if self.mode == 0:
            dt = F.softplus(a + self.dt_bias).clamp(*self.clamp)
            log_decay = dt * self.A
        state = self.state.double()
        y, end = reference.ssd(x * dt[..., None], log_decay, Bm.view(B, L, G, N), Cm.view(B, L, G, N), state)
        if self.D is not None:
            y = y + self.D.double().view(H, -1) * x
        return y.flatten(2), end

    def run(self, library, cuts=()):
        """y and the state after all tokens, read in the pieces that `cuts` make."""
        state, pieces = self.state.clone(), []
        for begin, end in zip([0, *cuts], [*cuts, self.L], strict=True):
            x, Bm, Cm, a = (
                (t[:, begin:end].contiguous() for t in (self.x, self.Bm, self.Cm, self.a))
                if cuts
                else (self.x, self.Bm, self.Cm, self.a)
            )
            y = torch.empty(self.B, end - begin, self.H * self.P)
            library.ssd(
                x, stride(x), Bm, stride(Bm), Cm, stride(Cm), a, stride(a), y, stride(y), self.B, end - begin, self.H, self.P,
                self.G, self.N, self.mode, self.A, self.dt_bias, *self.clamp, self.D,
                self.D is not None and len(self.D) == self.H * self.P, state, DTYPES[self.dtype],
            )  # fmt: skip
            pieces.append(y)
        return torch.cat(pieces, 1), state


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


class Scan:
    """A random call of leanlm_scan, to be run whole or in pieces."""

    def __init__(self, draw: Draw, dtype=None, **sizes):
        self.B, self.L = draw.randint(1, 3), draw.choice(LENGTHS)
        self.I, self.N = draw.choice([1, 7, 64, 77, 200]), draw.choice([1, 3, 8, 16, 19])
        self.__dict__.update(sizes)
        B, L, inner, N = self.B, self.L, self.I, self.N
        self.x, self.a, self.z = (draw.rows(B, L, inner) for _ in range(3))
        self.a = self.a * draw.choice([1, 8])
        self.Bm, self.Cm = draw.rows(B, L, N), draw.rows(B, L, N)
        self.A, self.dt_bias, self.D = -draw.values(inner, N).exp(), draw.values(inner), draw.values(inner)
        self.dtype = dtype or draw.choice([torch.float32, torch.bfloat16])
        self.state = draw.values(B, inner, N).to(self.dtype)

    def expected(self):
        x, dt = self.x.double(), F.softplus(self.a.double() + self.dt_bias)
        y, end = reference.selective_scan(x, dt, self.A.double(), self.Bm.double(), self.Cm.double(), self.state.double())
        return (y + self.D * x) * F.silu(self.z.double()), end

    def run(self, library, cuts=()):
        state, pieces = self.state.clone(), []
        for begin, end in zip([0, *cuts], [*cuts, self.L], strict=True):
            x, a, Bm, Cm, z = (self.x, self.a, self.Bm, self.Cm, self.z)
            if cuts:
                x, a, Bm, Cm, z = (t[:, begin:end].contiguous() for t in (x, a, Bm, Cm, z))
            y = torch.empty(self.B, end - begin, self.I)
            library.scan(
                x, stride(x), a, stride(a), Bm, stride(Bm), Cm, stride(Cm), z, stride(z), y, stride(y), self.B, end - begin,
                self.I, self.N, self.A, self.dt_bias, self.D, state, DTYPES[self.dtype],
            )  # fmt: skip
            pieces.append(y)
        return torch.cat(pieces, 1), state


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
    angles = ((position[:, None] + torch.arange(L))[..., None].float() * freq).double()
    expected = reference.rotate(x.double().view(B, L, heads, P), angles.cos(), angles.sin()).flatten(2)
    library.rotate(x, stride(x), B, L, heads, P, R, freq, position)
    close(x, expected, 1e-6)


class Attend:
    """A random text of attention: what was read before fills the caches, L new tokens follow."""

    def __init__(self, draw: Draw, dtype=None, **sizes):
        self.B, self.L = draw.randint(1, 3), draw.choice(LENGTHS)
        self.Hkv, self.P = draw.choice([1, 2, 3]), draw.choice([1, 5, 16, 20, 64, 128])
        self.window, self.sharing = draw.choice([0, 0, 1, 7, 64, 100]), draw.choice([1, 1, 2, 3, 4, 7, 8, 15])
        self.read = draw.choice([0, 1, 30, 200])
        self.__dict__.update(sizes)
        B, L, Hkv, P = self.B, self.L, self.Hkv, self.P
        self.H = Hkv * self.sharing
        self.position = torch.tensor([draw.randint(0, self.read) for _ in range(B)])
        self.start = torch.tensor([draw.choice([0, draw.randint(0, int(p))]) for p in self.position])
        total = int(self.position.max()) + L
        self.slots = self.window or total + draw.choice([0, 5])
        self.q = draw.rows(B, L, self.H * P)
        self.k, self.v = draw.rows(B, L, Hkv * P), draw.rows(B, L, Hkv * P)
        self.scale = draw.choice([P**-0.5, 1.7])
        self.dtype = dtype or draw.choice(list(DTYPES))
        self.old = draw.values(2, B, total, Hkv, P).to(self.dtype)  # by position; those read before count

    def caches(self):
        """The caches after the tokens read before; what never was written must not matter."""
        caches = torch.full((2, self.B, self.slots, self.Hkv, self.P), torch.nan, dtype=self.dtype)
        for b, read in enumerate(self.position.tolist()):
            at = torch.arange(max(0, read - self.slots), read)
            caches[:, b, at % self.slots] = self.old[:, b, at]
        return caches

    def expected(self):
        B, L = self.B, self.L
        total = self.old.shape[2]
        text = self.old.double().clone()  # keys and values by position
        for b, read in enumerate(self.position.tolist()):
            for i, new in enumerate((self.k, self.v)):
                text[i, b, read : read + L] = new[b].to(self.dtype).double().view(L, self.Hkv, self.P)
        last = self.position[:, None] + torch.arange(L)
        first, at = self.start[:, None].expand(B, L), torch.arange(total).expand(B, total)
        q = self.q.double().view(B, L, self.H, self.P)
        return reference.attend(q, *text, first, last, at, self.scale, self.window or None).flatten(2), text

    def run(self, library, cuts=()):
        caches, pieces = self.caches(), []
        for begin, end in zip([0, *cuts], [*cuts, self.L], strict=True):
            q, k, v = self.q, self.k, self.v
            if cuts:
                q, k, v = (t[:, begin:end].contiguous() for t in (q, k, v))
            y = torch.empty(self.B, end - begin, self.H * self.P)
            library.attend(
                q, stride(q), k, stride(k), v, stride(v), y, stride(y), self.B, end - begin, self.H, self.Hkv, self.P,
                self.slots, self.window, self.scale, self.position + begin, self.start, *caches,
                DTYPES[self.dtype],
            )  # fmt: skip
            pieces.append(y)
        return torch.cat(pieces, 1), caches


@pytest.mark.parametrize("seed", range(100))
def test_attend(library, seed):
    call = Attend(Draw(seed))
    y, caches = call.run(library)
    expected, text = call.expected()
    close(y, expected)
    for b, read in enumerate(call.position.tolist()):
        at = torch.arange(max(0, read + call.L - call.slots), read + call.L)
        assert torch.equal(caches[:, b, at % call.slots].double(), text[:, b, at])


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
