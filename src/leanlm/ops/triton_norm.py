"""RMS norms on a GPU, with and without a gate: one row of a group of channels per program, in registers.

The backward pass goes through several rows per program, so that the gradient of the weight is few partial sums.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from leanlm.ops import eager
from leanlm.ops.triton_launch import differentiable, tile

PROGRAMS = 512  # of the backward pass, for every group, at most


def _launch(kernel, rows: int, groups: int, D: int, *given, **flags) -> None:
    width = D // groups
    block = tile(width, 1 << 30, 1)
    warps = 4 if block <= 2048 else 8 if block <= 8192 else 16
    kernel[rows, groups](*given, D, width, **flags, BLOCK=block, num_warps=warps)


@triton.jit
def _loaded(y, z, place, there, eps, width, GATE_FIRST: tl.constexpr):
    """y, the gate silu(z) and its derivative (1 and 0 without z), what is normed, and by what it is multiplied."""
    value = tl.load(y + place, there, 0.0).to(tl.float32)
    gate, slope = tl.full(value.shape, 1.0, tl.float32), tl.zeros(value.shape, tl.float32)
    if z is not None:
        v = tl.load(z + place, there, 0.0).to(tl.float32)
        s = tl.sigmoid(v)
        gate, slope = v * s, s * (1 + v * (1 - s))
    normed = value * gate if GATE_FIRST else value
    return value, gate, slope, normed, tl.rsqrt(tl.sum(normed * normed, 0) / width + eps)


@triton.jit
def _forward_kernel(
    y, z, weight, out, eps, D, width, GATE_FIRST: tl.constexpr, ROUND_FIRST: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    c = tl.arange(0, BLOCK)
    channel, there = tl.program_id(1) * width + c, c < width
    place = tl.program_id(0).to(tl.int64) * D + channel
    _, gate, _, normed, scale = _loaded(y, z, place, there, eps, width, GATE_FIRST)
    normed *= scale
    if ROUND_FIRST:
        normed = normed.to(out.dtype.element_ty).to(tl.float32)
    found = normed * tl.load(weight + channel, there, 0.0).to(tl.float32)
    if not GATE_FIRST:
        found *= gate
    tl.store(out + place, found.to(out.dtype.element_ty), there)


@triton.jit
def _backward_kernel(
    y, z, weight, dout, dy, dz, dweight, eps, rows, D, width, GATE_FIRST: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    c = tl.arange(0, BLOCK)
    channel, there = tl.program_id(1) * width + c, c < width
    w = tl.load(weight + channel, there, 0.0).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        place = row * D + channel
        value, gate, slope, normed, scale = _loaded(y, z, place, there, eps, width, GATE_FIRST)
        d = tl.load(dout + place, there, 0.0).to(tl.float32)
        unit = normed * scale
        after = d if GATE_FIRST else d * gate  # of unit o weight
        total += after * unit
        inner = after * w
        dnormed = scale * (inner - unit * tl.sum(inner * unit, 0) / width)
        tl.store(dy + place, dnormed * gate if GATE_FIRST else dnormed, there)
        if dz is not None:
            tl.store(dz + place, (dnormed * value if GATE_FIRST else d * unit * w) * slope, there)
    tl.store(dweight + tl.program_id(0).to(tl.int64) * D + channel, total, there)


def _forward_into(out: Tensor, y, z, weight, eps, groups, gate_first, round_first=False) -> Tensor:
    D = y.shape[-1]
    z = None if z is None else z.contiguous()
    flags = {"GATE_FIRST": gate_first, "ROUND_FIRST": round_first}
    _launch(_forward_kernel, y.numel() // D, groups, D, y.contiguous(), z, weight.contiguous(), out, eps, **flags)
    return out


def _gradients(dout, y, z, weight, eps, groups, gate_first) -> tuple[Tensor, Tensor | None, Tensor]:
    D, rows = y.shape[-1], y.numel() // y.shape[-1]
    programs = min(rows, PROGRAMS)
    dy, dz = torch.empty(y.shape, device=y.device), None if z is None else torch.empty(y.shape, device=y.device)
    dweight = torch.empty(programs, D, device=y.device)
    given = (y.contiguous(), None if z is None else z.contiguous(), weight.contiguous(), dout.contiguous(), dy, dz, dweight)
    _launch(_backward_kernel, programs, groups, D, *given, eps, rows, GATE_FIRST=gate_first)
    return dy, dz, dweight.sum(0)


def _gated_forward(y, z, weight, eps, groups, norm_before_gate):
    out = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    return _forward_into(out, y, z, weight, eps, groups, not norm_before_gate)


def _gated_backward(gradients, y, z, weight, eps, groups, norm_before_gate):
    return *_gradients(gradients[0], y, z, weight, eps, groups, not norm_before_gate), None, None, None


def _rms_forward(x, weight, eps, round_first):
    out = torch.empty(x.shape, dtype=weight.dtype, device=x.device)
    return _forward_into(out, x, None, weight, eps, 1, True, round_first)


def _rms_backward(gradients, x, weight, eps, round_first):
    dx, _, dweight = _gradients(gradients[0], x, None, weight, eps, 1, True)
    return dx, dweight, None, None


gated_norm = differentiable("gated_norm", _gated_forward, _gated_backward, eager.gated_norm)
rms_norm = differentiable("rms_norm", _rms_forward, _rms_backward, eager.rms_norm)
