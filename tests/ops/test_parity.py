"""Every implementation of every operation against the reference: values, gradients, states, document boundaries."""

import importlib
import math

import operands
import pytest
import torch
from hypothesis import given, settings
from operands import TOLERANCE, agree, run

from leanlm import ops
from leanlm.ops import dispatch, eager, reference

OPERATIONS = [op for op in dispatch.OPERATIONS if op != "telescope"]  # see test_telescope
FAST = sorted({(op, name) for op in OPERATIONS for name in dispatch.TABLE[op, "*"] if name != "reference"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("op", "name"), FAST)
def test_forward_and_gradients_agree_with_the_reference(op, name, dtype):
    implementation = getattr(importlib.import_module(f"leanlm.ops.{name}"), op)

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(getattr(operands, op)(dtype))
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
    @given(getattr(operands, op)(torch.float64))
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
    @given(getattr(operands, op)(torch.float32))
    def check(arguments):
        wanted, wanted_gradients = run(getattr(reference, op), arguments)
        there = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        found, gradients = run(getattr(ops, op), there)
        for i, (y, expected) in enumerate(zip(found, wanted, strict=True)):
            agree(y.cpu(), expected, 2e-3, f"output {i}")  # its products may round to TF32
        for argument, expected in wanted_gradients.items():
            agree(gradients[argument].cpu(), expected, 1e-2, f"gradient of {argument}")

    check()
