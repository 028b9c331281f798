"""Every implementation of every operation against the reference: values, gradients, states, document boundaries."""

import importlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanlm import ops
from leanlm.ops import dispatch, eager, packing, reference

OPERATIONS = [op for op in dispatch.OPERATIONS if op != "telescope"]  # see test_telescope
FAST = sorted({(op, name) for op in OPERATIONS for name in dispatch.TABLE[op, "*"] if name != "reference"})
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
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("op", "name"), FAST)
def test_forward_and_gradients_agree_with_the_reference(op, name, dtype):
    implementation = getattr(importlib.import_module(f"leanlm.ops.{name}"), op)

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(globals()[op](dtype))
    def check(arguments):
        wanted, wanted_gradients = run(getattr(reference, op), arguments)
        found, gradients = run(implementation, arguments)
        for i, (y, expected) in enumerate(zip(found, wanted, strict=True)):
            agree(y, expected, TOLERANCE[dtype], f"output {i}")
        for argument, expected in wanted_gradients.items():
            agree(gradients[argument], expected, 5 * TOLERANCE[dtype], f"gradient of {argument}")
        with torch.no_grad():  # the paths without autograd work in place
            before = {k: v.clone() for k, v in arguments.items() if isinstance(v, torch.Tensor)}
            plain = implementation(**arguments)
            for y, expected in zip(plain if isinstance(plain, tuple) else (plain,), wanted, strict=True):
                agree(y, expected.detach(), TOLERANCE[dtype], "output without autograd")
            assert all(torch.equal(arguments[k], v) for k, v in before.items()), "an argument was mutated"

    check()


@pytest.mark.parametrize("module", [eager, reference], ids=["eager", "reference"])
@pytest.mark.parametrize("op", OPERATIONS)
def test_float64_stays_float64_throughout(op, module):
    @settings(max_examples=8, deadline=None, derandomize=True)
    @given(globals()[op](torch.float64))
    def check(arguments):
        wide = {k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in arguments.items()}
        outputs, expected = getattr(module, op)(**wide), getattr(reference, op)(**wide)
        if not isinstance(outputs, tuple):
            outputs, expected = (outputs,), (expected,)
        for y, wanted in zip(outputs, expected):
            assert y.dtype == torch.float64
            # A float32 intermediate anywhere would leave an error above 1e-8.
            agree(y, wanted, TOLERANCE[torch.float64], op)

    check()


@pytest.mark.parametrize("name", ["eager", "reference"])
def test_a_decay_to_nothing_neither_overflows_nor_loses_digits(name, monkeypatch):
    """A strong decay between two calm stretches must not blur the calm ones: float32 against float64."""
    monkeypatch.setenv("LEANLM_IMPL", name)
    torch.manual_seed(0)
    x, B, C = torch.randn(1, 130, 2, 3), torch.randn(1, 130, 1, 4), torch.randn(1, 130, 1, 4)
    log_decay = -0.01 * torch.rand(1, 130, 2)
    log_decay[:, 5::16] = -2000.0
    found, state = ops.ssd(x, log_decay, B, C)
    wanted, wanted_state = ops.ssd(x.double(), log_decay.double(), B.double(), C.double())
    agree(found.double(), wanted, 2e-6, "y")
    agree(state.double(), wanted_state, 2e-6, "state")


@pytest.mark.parametrize("name", ["eager", "reference"])
def test_extreme_inputs_give_finite_values_and_gradients(name, monkeypatch):
    monkeypatch.setenv("LEANLM_IMPL", name)
    torch.manual_seed(0)
    decay = torch.full((1, 70, 2), -80.0, requires_grad=True)
    y, _ = ops.ssd(torch.randn(1, 70, 2, 3), decay, torch.randn(1, 70, 1, 4), torch.randn(1, 70, 1, 4))
    dt = torch.full((1, 70, 3), 1e4, requires_grad=True)
    A = torch.full((3, 2), -1e3, requires_grad=True)
    h, _ = ops.selective_scan(torch.randn(1, 70, 3), dt, A, torch.randn(1, 70, 2), torch.randn(1, 70, 2))
    gradients = torch.autograd.grad(y.sum() + h.sum(), (decay, dt, A))
    assert all(torch.isfinite(t).all() for t in (y, h, *gradients))


@pytest.mark.parametrize("length", [1, 2, 70])
@pytest.mark.parametrize("name", ["eager", "reference"])
def test_a_document_that_begins_with_the_call_forgets_the_state(name, length, monkeypatch):
    monkeypatch.setenv("LEANLM_IMPL", name)
    torch.manual_seed(0)
    begun = torch.tensor([[1], [0]]).expand(2, length)
    x, wide, B, C = (torch.randn(2, length, *rest) for rest in ((3,), (4, 3), (2, 5), (2, 5)))
    tail, state, decay = torch.randn(2, 3, 3), torch.randn(2, 4, 3, 5), -torch.rand(2, length, 4)
    step, A = torch.rand(2, length, 3), -torch.rand(3, 5)
    calls = (
        lambda tail, marks: ops.conv(x, torch.ones(3, 4), None, tail, marks),
        lambda state, marks: ops.ssd(wide, decay, B, C, state, marks),
        lambda state, marks: ops.selective_scan(x, step, A, B[:, :, 0], C[:, :, 0], state, marks),
    )
    for call, memory in zip(calls, (tail, state, state[:, 0])):
        for found, kept, fresh in zip(call(memory, begun), call(memory, None), call(None, None), strict=True):
            torch.testing.assert_close(found[0], fresh[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(found[1], kept[1], atol=1e-5, rtol=1e-5)


def test_the_scans_memory_does_not_depend_on_how_channels_are_blocked(monkeypatch):
    torch.manual_seed(0)
    x, dt, A = torch.randn(2, 70, 50), torch.rand(2, 70, 50), -torch.rand(50, 3)
    B, C, state = torch.randn(2, 70, 3), torch.randn(2, 70, 3), torch.randn(2, 50, 3)
    whole = eager.selective_scan(x, dt, A, B, C, state)
    monkeypatch.setattr(eager, "SCAN_BLOCK", 1)  # sixteen channels a block, the last one narrower
    for found, wanted in zip(eager.selective_scan(x, dt, A, B, C, state), whole):
        agree(found, wanted, 1e-6, "blocked")


def test_a_half_precision_product_is_as_good_widened_as_native(monkeypatch):
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(shape, dtype=torch.bfloat16) for shape in ((32, 64), (48, 64), (48,)))
    wanted = (x.double() @ weight.double().T + bias.double()).to(torch.bfloat16)
    for native in (False, True):
        monkeypatch.setattr(eager, "cpu_multiplies_bfloat16", lambda native=native: native)
        agree(eager.linear(x, weight, bias), wanted, math.ldexp(1, -7), f"native {native}")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("op", OPERATIONS)
def test_the_gpu_agrees_with_the_reference_on_the_cpu(op):
    @settings(max_examples=10, deadline=None, derandomize=True)
    @given(globals()[op](torch.float32))
    def check(arguments):
        wanted, wanted_gradients = run(getattr(reference, op), arguments)
        there = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        found, gradients = run(getattr(ops, op), there)
        for i, (y, expected) in enumerate(zip(found, wanted, strict=True)):
            agree(y.cpu(), expected, 2e-3, f"output {i}")  # its products may round to TF32
        for argument, expected in wanted_gradients.items():
            agree(gradients[argument].cpu(), expected, 1e-2, f"gradient of {argument}")

    check()
