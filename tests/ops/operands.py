"""Random arguments of every operation, its outputs and gradients, and how near two implementations have to be."""

import torch
from hypothesis import strategies as st

from leanlm.ops import packing

LENGTHS = (1, 2, 3, 31, 32, 33, 64, 65, 130)  # below the kernel, around one chunk of either scan, several chunks
FLAG = st.booleans()
NORMED = st.integers(6, 33)  # a norm over very few channels is nearly a sign: its gradient is all rounding


def normal(draw, *shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def uniform(draw, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**31))))


def documents(draw, B, L):
    """None, or [B, L] ordinals that begin at 0 or later and never fall."""
    if not draw(st.booleans()):
        return None
    starts = uniform(draw, B, L) < draw(st.sampled_from((0.03, 0.2)))
    return starts.long().cumsum(1)


def maybe(draw, tensor):
    return tensor if draw(st.booleans()) else None


@st.composite
def conv(draw, dtype):
    B, L, C, K = draw(st.integers(1, 3)), draw(st.sampled_from(LENGTHS[:6])), draw(st.integers(1, 9)), draw(st.integers(1, 5))
    return {
        "x": normal(draw, B, L, C, dtype=dtype),
        "weight": normal(draw, C, K, dtype=dtype),
        "bias": maybe(draw, normal(draw, C, dtype=dtype)),
        "tail": maybe(draw, normal(draw, B, C, K - 1, dtype=dtype)),
        "segments": documents(draw, B, L),
        "activation": draw(st.sampled_from(("identity", "silu"))),
    }


@st.composite
def ssd(draw, dtype):
    B, L, G = draw(st.integers(1, 2)), draw(st.sampled_from(LENGTHS)), draw(st.integers(1, 3))
    H, P, N = G * draw(st.integers(1, 3)), draw(st.integers(1, 7)), draw(st.integers(1, 9))
    strength = draw(st.sampled_from((0.01, 1.0, 80.0)))
    calm = uniform(draw, B, L, H) < draw(st.sampled_from((0.0, 0.5)))
    return {
        "x": normal(draw, B, L, H, P, dtype=dtype),
        "log_decay": (-strength * uniform(draw, B, L, H)).masked_fill(calm, -1e-3),
        "B": normal(draw, B, L, G, N, dtype=dtype),
        "C": normal(draw, B, L, G, N, dtype=dtype),
        "state": maybe(draw, normal(draw, B, H, P, N)),
        "segments": documents(draw, B, L),
    }


@st.composite
def selective_scan(draw, dtype):
    B, L, D, N = draw(st.integers(1, 2)), draw(st.sampled_from(LENGTHS)), draw(st.integers(1, 19)), draw(st.integers(1, 9))
    return {
        "x": normal(draw, B, L, D, dtype=dtype),
        "dt": uniform(draw, B, L, D) * draw(st.sampled_from((0.01, 1.0, 40.0))),
        "A": -0.05 - uniform(draw, D, N) * draw(st.sampled_from((1.0, 16.0))),
        "B": normal(draw, B, L, N, dtype=dtype),
        "C": normal(draw, B, L, N, dtype=dtype),
        "state": maybe(draw, normal(draw, B, D, N)),
        "segments": documents(draw, B, L),
    }


@st.composite
def attend(draw, dtype):
    """A ring of slots holding the newest keys of each row, some slots still empty, and queries at its end."""
    B, L, groups = draw(st.integers(1, 3)), draw(st.sampled_from((1, 2, 5))), draw(st.integers(1, 3))
    H, P, S = groups * draw(st.integers(1, 3)), draw(st.integers(1, 9)), L + draw(st.integers(0, 9))
    newest = torch.tensor([[draw(st.integers(L - 1, 20))] for _ in range(B)])
    at = (newest - (newest - torch.arange(S)) % S).clamp(min=-1)
    last = newest + torch.arange(1 - L, 1)
    return {
        "q": normal(draw, B, L, H, P, dtype=dtype),
        "k": normal(draw, B, S, groups, P, dtype=dtype),
        "v": normal(draw, B, S, groups, P, dtype=dtype),
        "first": (last - torch.tensor([[draw(st.integers(0, 9))] for _ in range(B)])).clamp(min=0),
        "last": last,
        "key_positions": at,
        "scale": draw(st.sampled_from((0.3, P**-0.5))),
        "window": draw(st.none() | st.integers(1, S)),
    }


@st.composite
def causal_attend(draw, dtype):
    B, L, groups, P = draw(st.integers(1, 3)), draw(st.integers(1, 17)), draw(st.integers(1, 3)), draw(st.integers(1, 9))
    shared = (B, L, groups, P)
    return {
        "q": normal(draw, B, L, groups * draw(st.integers(1, 3)), P, dtype=dtype),
        "k": normal(draw, *shared, dtype=dtype),
        "v": normal(draw, *shared, dtype=dtype),
        "scale": draw(st.sampled_from((0.3, P**-0.5))),
    }


@st.composite
def packed_attend(draw, dtype):
    arguments = draw(causal_attend(dtype))
    B, L = arguments["q"].shape[:2]
    begins = uniform(draw, B, L) < draw(st.sampled_from((0.0, 0.2)))
    first = torch.where(begins, torch.arange(L), 0).cummax(1).values
    return {**arguments, "first": first, "window": draw(st.none() | st.integers(1, L))}


@st.composite
def linear(draw, dtype):
    rows, inside, outside = draw(st.sampled_from((1, 3, 16, 40))), draw(st.integers(1, 33)), draw(st.integers(1, 33))
    return {
        "x": normal(draw, 1, rows, inside, dtype=dtype),
        "weight": normal(draw, outside, inside, dtype=dtype),
        "bias": maybe(draw, normal(draw, outside, dtype=dtype)),
    }


def codes(draw, *shape, below):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randint(below, shape, generator=generator, dtype=torch.uint8)


@st.composite
def grouped_linear(draw, dtype):
    bits, G = draw(st.sampled_from((2, 3, 4, 6, 8))), draw(st.integers(1, 4))
    rows, n, R = draw(st.sampled_from((1, 3, 16))), G * draw(st.integers(1, 11)), draw(st.integers(1, 17))
    return {
        "x": normal(draw, 1, rows, n, dtype=dtype),
        "codes": packing.pack(codes(draw, R, n, below=2**bits), bits),
        "scales": (uniform(draw, R, G) / 8 + 0.01).half(),
        "zeros": maybe(draw, codes(draw, R, G, below=2**bits)),
        "g_idx": maybe(draw, codes(draw, n, below=G).int()),
        "bits": bits,
        "bias": maybe(draw, normal(draw, R, dtype=dtype)),
    }


@st.composite
def ternary_linear(draw, dtype):
    rows, n, R, along_rows = draw(st.sampled_from((1, 3, 16))), draw(st.integers(1, 33)), draw(st.integers(1, 17)), draw(FLAG)
    longest = R if along_rows else n
    starts = sorted({0, *draw(st.lists(st.integers(0, longest - 1), max_size=5))})
    return {
        "x": normal(draw, 1, rows, n, dtype=dtype),
        "codes": packing.pack(codes(draw, R, n, below=3), 2),
        "scales": uniform(draw, len(starts)).half(),
        "starts": torch.tensor(starts, dtype=torch.int32),
        "along_rows": along_rows,
        "bias": maybe(draw, normal(draw, R, dtype=dtype)),
    }


@st.composite
def rms_norm(draw, dtype):
    D = draw(NORMED)
    return {
        "x": normal(draw, 2, 3, D, dtype=draw(st.sampled_from((dtype, torch.float32)))),
        "weight": normal(draw, D, dtype=dtype),
        "eps": draw(st.sampled_from((1e-6, 1e-2))),
        "round_first": draw(st.booleans()),
    }


@st.composite
def layer_norm(draw, dtype):
    D = draw(NORMED)
    x, weight, bias = normal(draw, 2, 3, D, dtype=dtype), normal(draw, D, dtype=dtype), normal(draw, D, dtype=dtype)
    return {"x": x, "weight": weight, "bias": bias, "eps": draw(st.sampled_from((1e-5, 1e-2)))}


@st.composite
def gated_norm(draw, dtype):
    groups, share = draw(st.integers(1, 4)), draw(NORMED)
    return {
        "y": normal(draw, 2, 3, groups * share, dtype=dtype),
        "z": normal(draw, 2, 3, groups * share, dtype=dtype),
        "weight": normal(draw, groups * share, dtype=dtype),
        "eps": draw(st.sampled_from((1e-5, 1e-2))),
        "groups": groups,
        "norm_before_gate": draw(st.booleans()),
    }


@st.composite
def rotate(draw, dtype):
    B, L, H, P = (draw(st.integers(1, 6)) for _ in range(4))
    angles = normal(draw, B, L, draw(st.integers(0, P // 2)))
    return {"x": normal(draw, B, L, H, P, dtype=dtype), "cos": angles.cos(), "sin": angles.sin()}


STORED = {"scales"}  # of packed weights, which have no gradients


def run(op, arguments):
    """Outputs as a tuple, and the gradient of a fixed random projection of them for every floating argument."""
    arguments = {
        k: v.detach().clone().requires_grad_(v.is_floating_point() and k not in STORED) if isinstance(v, torch.Tensor) else v
        for k, v in arguments.items()
    }
    outputs = op(**arguments)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(0)
    weighed = [
        (y.double() * torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.device)).sum() for y in outputs
    ]
    leaves = {k: v for k, v in arguments.items() if isinstance(v, torch.Tensor) and v.requires_grad}
    gradients = torch.autograd.grad(sum(weighed), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return outputs, dict(zip(leaves, gradients))


def agree(found, wanted, tolerance, name):
    assert found.dtype == wanted.dtype and found.shape == wanted.shape, name
    assert torch.isfinite(found).all(), name
    scale = max(wanted.abs().max().item(), 1.0) if wanted.numel() else 1.0
    worst = (found.double() - wanted.double()).abs().max().item() if wanted.numel() else 0.0
    assert worst <= tolerance * scale, f"{name}: {worst:.2e} off at scale {scale:.2e}"


# Rounding alone separates the implementations: a few units of the last place, carried through sums of a hundred terms.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
