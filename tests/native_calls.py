"""Random calls of the native library's mixers, and what the reference says to them.

B texts  L tokens  H heads  P head width  G groups  N state width  I inner channels
"""

import random

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


def quantised(x):
    """Codes [.., P] and scales [..] of rows: the largest size is code 127."""
    scales = x.abs().amax(-1) / 127
    return (x / scales.where(scales > 0, 1)[..., None]).round().to(torch.int8), scales


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
        self.dtype = dtype or draw.choice([*DTYPES, torch.int8])
        old = draw.values(2, B, total, Hkv, P)  # by position; those read before count
        self.old, self.old_scales = quantised(old) if self.dtype == torch.int8 else (old.to(self.dtype), None)

    def caches(self):
        """The caches after the tokens read before, and their scales; what never was written must not matter."""
        unwritten = 99 if self.dtype == torch.int8 else torch.nan
        caches = torch.full((2, self.B, self.slots, self.Hkv, self.P), unwritten, dtype=self.dtype)
        scales = torch.full((2, self.B, self.slots, self.Hkv), torch.nan)
        for b, read in enumerate(self.position.tolist()):
            at = torch.arange(max(0, read - self.slots), read)
            caches[:, b, at % self.slots] = self.old[:, b, at]
            if self.old_scales is not None:
                scales[:, b, at % self.slots] = self.old_scales[:, b, at]
        return caches, scales

    def remembered(self, new):
        """Keys or values [B, L, Hkv P] as they come back out of a cache, and as they lie there: [B, L, Hkv, P]."""
        new = new.reshape(self.B, self.L, self.Hkv, self.P)
        if self.dtype != torch.int8:
            return new.to(self.dtype).double(), new.to(self.dtype)
        codes, scales = quantised(new)
        return codes.double() * scales.double()[..., None], codes

    def expected(self):
        B, L = self.B, self.L
        total = self.old.shape[2]
        text, held = self.old.double().clone(), self.old.clone()  # keys and values by position; as they lie in the caches
        if self.old_scales is not None:
            text *= self.old_scales.double()[..., None]
        for i, new in enumerate((self.k, self.v)):
            values, codes = self.remembered(new)
            for b, read in enumerate(self.position.tolist()):
                text[i, b, read : read + L], held[i, b, read : read + L] = values[b], codes[b]
        last = self.position[:, None] + torch.arange(L)
        first, at = self.start[:, None].expand(B, L), torch.arange(total).expand(B, total)
        q = self.q.double().view(B, L, self.H, self.P)
        return reference.attend(q, *text, first, last, at, self.scale, self.window or None).flatten(2), held

    def run(self, library, cuts=()):
        (caches, scales), pieces = self.caches(), []
        for begin, end in zip([0, *cuts], [*cuts, self.L], strict=True):
            q, k, v = self.q, self.k, self.v
            if cuts:
                q, k, v = (t[:, begin:end].contiguous() for t in (q, k, v))
            y = torch.empty(self.B, end - begin, self.H * self.P)
            library.attend(
                q, stride(q), k, stride(k), v, stride(v), y, stride(y), self.B, end - begin, self.H, self.Hkv, self.P,
                self.slots, self.window, self.scale, self.position + begin, self.start, *caches,
                (DTYPES | {torch.int8: 3})[self.dtype], *scales,
            )  # fmt: skip
            pieces.append(y)
        return torch.cat(pieces, 1), caches
