"""The GPU kernels against the reference, forward and backward: on a card, or without one under Triton's interpreter."""

import importlib

import operands
import pytest
import test_telescope
import torch
from hypothesis import given, settings
from operands import TOLERANCE, agree, run

from hybrid_models import build, text
from leanlm import ops
from leanlm.model.config import Mamba2, ModelConfig
from leanlm.ops import dispatch, reference

pytest.importorskip("triton", reason="Triton is not installed")
from leanlm.ops import triton_carry, triton_launch, triton_norm, triton_packed, triton_scan, triton_ssd, triton_telescope

CARD = torch.cuda.is_available()
DEVICE = "cuda" if CARD else "cpu"
EXAMPLES = {"ssd": 5, "selective_scan": 4}  # the interpreter is slow
LONGEST = 66  # tokens: two chunks of either scan, and the scan goes through every one
SPARED = {"telescope"}  # tested apart


def kernels(op):
    return getattr(importlib.import_module(f"leanlm.ops.{dispatch.KERNELS[op]}"), op)


def there(arguments):
    return {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}


def bounds(dtype):
    return 2e-3 if CARD and dtype == torch.float32 else TOLERANCE[dtype]  # products may round to TF32


def is_small(arguments):
    tensors = [v for v in arguments.values() if isinstance(v, torch.Tensor)]
    return all(v.numel() for v in tensors) and tensors[0].shape[1] <= LONGEST


@pytest.fixture(autouse=True)
def nothing_is_given_up():
    yield
    assert not triton_launch.BROKEN
    triton_launch.BROKEN.clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("op", sorted(dispatch.KERNELS.keys() - SPARED))
def test_outputs_and_gradients_agree_with_the_reference(op, dtype):
    @settings(max_examples=3 if dtype == torch.float16 else EXAMPLES.get(op, 8), deadline=None, derandomize=True)
    @given(getattr(operands, op)(dtype).filter(is_small))
    def check(arguments):
        wanted, wanted_gradients = run(getattr(reference, op), arguments)
        found, gradients = run(kernels(op), there(arguments))
        for i, (y, expected) in enumerate(zip(found, wanted, strict=True)):
            agree(y.cpu(), expected, bounds(dtype), f"output {i}")
        for argument, expected in wanted_gradients.items():
            agree(gradients[argument].cpu(), expected, 5 * bounds(dtype), f"gradient of {argument}")
        with torch.no_grad():  # one token has kernels of its own
            before = there({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()})
            given = there(arguments)
            plain = kernels(op)(**given)
            for y, expected in zip(plain if isinstance(plain, tuple) else (plain,), wanted, strict=True):
                agree(y.cpu(), expected.detach(), bounds(dtype), "output without autograd")
            same = (torch.equal(given[k], v) for k, v in before.items() if isinstance(v, torch.Tensor))
            assert all(same), "an argument was mutated"

    check()


@settings(max_examples=4, deadline=None, derandomize=True)
@given(test_telescope.calls())
def test_telescoping_entries_agree_with_the_reference(arguments):
    if CARD:
        pytest.skip("the reference's arguments lie on the CPU")
    found, wanted = (
        test_telescope.run(triton_telescope.telescope, arguments),
        test_telescope.run(reference.telescope, arguments),
    )
    for mine, theirs in zip(found, wanted, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize(("P", "N", "H", "G"), [(80, 72, 2, 1), (5, 130, 3, 3), (3, 4, 18, 1)])
def test_ssd_of_several_tiles_and_parts(P, N, H, G):
    """Heads wider than a tile, states wider than a tile, more heads in a group than a program goes through."""
    torch.manual_seed(0)
    x, decay, state = torch.randn(1, 70, H, P), -torch.rand(1, 70, H), torch.randn(1, H, P, N)
    arguments = {"x": x, "log_decay": decay, "B": torch.randn(1, 70, G, N), "C": torch.randn(1, 70, G, N), "state": state}
    arguments["segments"] = (torch.arange(70) > 40).long()[None]
    wanted, wanted_gradients = run(ops.ssd, arguments)
    found, gradients = run(triton_ssd.ssd, there(arguments))
    for y, expected in zip(found, wanted):
        agree(y.cpu(), expected, bounds(torch.float32), "output")
    for argument, expected in wanted_gradients.items():
        agree(gradients[argument].cpu(), expected, 5 * bounds(torch.float32), argument)


def test_a_decay_to_nothing_loses_no_digits():
    torch.manual_seed(0)
    x, B, C = torch.randn(1, 66, 1, 3), torch.randn(1, 66, 1, 4), torch.randn(1, 66, 1, 4)
    log_decay = -0.01 * torch.rand(1, 66, 1)
    log_decay[:, 5::16] = -2000.0
    found, state = triton_ssd.ssd(*(t.to(DEVICE) for t in (x, log_decay, B, C)))
    wanted, wanted_state = reference.ssd(x.double(), log_decay.double(), B.double(), C.double())
    agree(found.double().cpu(), wanted, bounds(torch.float32) / 5, "y")
    agree(state.double().cpu(), wanted_state, bounds(torch.float32) / 5, "state")


def test_a_scan_whose_chunks_are_gone_through_one_by_one(monkeypatch):
    """Where the states inside chunks would take too much memory, a program goes through several chunks."""
    torch.manual_seed(0)
    monkeypatch.setattr(triton_scan, "CHUNK", 8)
    rows = {"B": torch.randn(2, 20, 3), "C": torch.randn(2, 20, 3)}
    arguments = {"x": torch.randn(2, 20, 4), "dt": torch.rand(2, 20, 4), "A": -torch.rand(4, 3), **rows}
    wanted = run(triton_scan.selective_scan, there(arguments))[1]
    monkeypatch.setattr(triton_scan, "SCRATCH", 1)
    for name, gradient in run(triton_scan.selective_scan, there(arguments))[1].items():
        agree(gradient, wanted[name], 1e-6, name)


def test_a_norm_of_more_rows_than_programs(monkeypatch):
    monkeypatch.setattr(triton_norm, "PROGRAMS", 2)
    arguments = {"x": torch.randn(5, 9), "weight": torch.randn(9), "eps": 1e-5, "round_first": False}
    wanted, found = run(reference.rms_norm, arguments), run(triton_norm.rms_norm, there(arguments))
    for name, gradient in wanted[1].items():
        agree(found[1][name].cpu(), gradient, 1e-5, name)


@pytest.mark.parametrize("rows", [1, 3, 70])
def test_packed_products_of_several_tiles(rows):
    torch.manual_seed(0)
    codes = torch.randint(0, 3, (70, 150), dtype=torch.uint8)
    starts, scales = torch.tensor([0, 20, 64], dtype=torch.int32), torch.rand(3).half()
    x = torch.randn(rows, 600)
    wanted = ops.ternary_linear(x, codes * 85 % 171, scales, starts, True)
    found = triton_packed.ternary_linear(*(t.to(DEVICE) for t in (x, codes * 85 % 171, scales, starts)), True)
    agree(found.cpu(), wanted, bounds(torch.float32), "y")


def test_states_are_carried_both_ways():
    added, survival, given = torch.randn(2, 5, 300), torch.rand(2, 5, 3), torch.randn(2, 300)
    for backward in (False, True):
        state, starts = given, []
        for chunk in reversed(range(5)) if backward else range(5):
            starts.append(state)
            state = survival[:, chunk].repeat_interleave(100, 1) * state + added[:, chunk]
        carried = added.clone().to(DEVICE)
        last = triton_carry.carry(carried, survival.to(DEVICE), given.to(DEVICE), backward)
        agree(last.cpu(), state, 1e-6, "last")
        agree(carried.cpu(), torch.stack(starts[::-1] if backward else starts, 1), 1e-6, "starts")


class CannotCompile(triton_launch.CompilationError):
    def __init__(self):
        Exception.__init__(self, "no such instruction")

    def __str__(self):
        return "no such instruction"


def failing(*arguments):
    raise CannotCompile


def test_a_kernel_that_does_not_compile_is_replaced_and_said_once(monkeypatch):
    run = triton_launch.guarded("rms_norm", failing, reference.rms_norm)
    x, weight = torch.randn(2, 4), torch.ones(4)
    with pytest.warns(UserWarning, match="rms_norm: a kernel did not compile, plain torch goes on, slower") as told:
        for _ in range(3):
            torch.testing.assert_close(run(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
    assert len(told) == 1 and "no such instruction" in str(told[0].message)
    triton_launch.BROKEN.clear()


def test_a_backward_kernel_that_does_not_compile_is_replaced_by_autograd():
    op = triton_launch.differentiable("rms_norm", reference.rms_norm, failing, reference.rms_norm)
    x, weight = torch.randn(2, 4), torch.ones(4)
    arguments = {"x": x, "weight": weight, "eps": 1e-5}
    with pytest.warns(UserWarning, match="rms_norm: a kernel did not compile"):
        found = run(op, arguments)[1]
    for name, gradient in run(reference.rms_norm, arguments)[1].items():
        agree(found[name], gradient, 1e-6, name)
    triton_launch.BROKEN.clear()


def test_other_errors_of_a_kernel_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        triton_launch.guarded("rms_norm", lambda *_: 1 // 0, reference.rms_norm)(torch.ones(2, 4), torch.ones(4), 1e-5)


def test_float64_and_nothing_go_to_plain_torch():
    run = triton_launch.guarded("rms_norm", failing, reference.rms_norm)
    assert run(torch.ones(2, 4).double(), torch.ones(4).double(), 1e-5).dtype == torch.float64
    assert run(torch.ones(0, 4), torch.ones(4), 1e-5).shape == (0, 4)


@pytest.fixture
def mamba(monkeypatch):
    """A small Mamba-2 run by the kernels, and a text for it."""
    if not CARD:
        monkeypatch.setenv("LEANLM_IMPL", "triton")
    config = ModelConfig(16, 20, ((Mamba2(16, 8, 6),),))
    return build(config).to(DEVICE).train(), text(config, 1, 9).to(DEVICE)


def gradients_of(module, tokens):
    return torch.autograd.grad(module(tokens).square().sum(), module.parameters())


@pytest.mark.parametrize("how", ["compiled", "recomputed"])
def test_kernels_in_a_block_that_is_compiled_or_computed_again(how, mamba):
    module, tokens = mamba
    wanted = gradients_of(module, tokens)
    for sublayer in module.sublayers():
        if how == "compiled":
            sublayer.compile(backend="aot_eager")
        else:
            sublayer.recompute = True
    for found, expected in zip(gradients_of(module, tokens), wanted, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
