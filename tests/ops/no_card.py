"""Compiles every GPU kernel, forward and backward, in 16 bits and in float32, for the compute capability in argv: for a card
that need not be there.

Prints a line for every call of a kernel: its name, and the least and the most bytes of shared memory that its launches take.
Triton's driver and launches are replaced, so nothing is run.
"""

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

from leanlm.ops import triton_conv, triton_norm, triton_packed, triton_scan, triton_ssd, triton_telescope
from leanlm.ops.merging import Cache, Reading
from leanlm.ops.triton_launch import LAUNCHES
from leanlm.slots import Table

SMALLEST = "89"  # has the least shared memory, so that each launch matters; elsewhere the one that takes most will do


class Driver:
    def get_current_target(self):
        return GPUTarget("cuda", int(sys.argv[1]), 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=0):
        return 0


compile = JITFunction.run


def shared(kernel, *given, grid, **named):
    return compile(kernel, *given, grid=grid, **{**named, "warmup": True}).metadata.shared


def compiled(self, *given, grid, warmup, **named):
    print(self.fn.__name__, *[shared(self, *given, grid=grid, **named)] * 2)


def compiled_each(self, *given, grid=None, **named):
    launches = self.configs[-len(LAUNCHES) :] if sys.argv[1] == SMALLEST else self.configs[-1:]  # of the last blocks
    taken = [shared(self.fn, *given, grid=grid, **named, **config.all_kwargs()) for config in launches]
    print(self.fn.fn.__name__, min(taken), max(taken))


triton.runtime.driver.set_active(Driver())
JITFunction.run, Autotuner.run = compiled, compiled_each


def learnt(op, *arguments):
    arguments = [a.requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]
    outputs = op(*arguments)
    sum(y.float().sum() for y in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()


def every_kernel(dtype):
    def new(*shape):
        return torch.randn(shape, dtype=dtype)

    marks = torch.zeros(2, 70, dtype=torch.int64)
    for segments in (None, marks):
        rows = new(2, 70, 1, 128), new(2, 70, 1, 128)
        learnt(triton_ssd.ssd, torch.randn(2, 70, 8, 64), -torch.rand(2, 70, 8), *rows, torch.randn(2, 8, 64, 128), segments)
        rows = new(2, 70, 16), new(2, 70, 16)
        scanned = torch.randn(2, 70, 128), torch.rand(2, 70, 128), -torch.rand(128, 16)
        learnt(triton_scan.selective_scan, *scanned, *rows, torch.randn(2, 128, 16), segments)
        learnt(triton_conv.conv, new(2, 70, 128), new(128, 4), new(128), new(2, 128, 3), segments, "silu")
    for first in (False, True):
        learnt(triton_norm.gated_norm, new(2, 3, 512), new(2, 3, 512), new(512), 1e-5, 2, first)
        learnt(triton_norm.rms_norm, torch.randn(2, 3, 512), new(512), 1e-5, first)
    with torch.no_grad():
        one_token(new, marks)
        for rows in (1, 70):
            products(new(rows, 512))


def one_token(new, marks):
    given = new(2, 1, 1, 128), new(2, 1, 1, 128), torch.randn(2, 8, 64, 128)
    triton_ssd.ssd(torch.randn(2, 1, 8, 64), -torch.rand(2, 1, 8), *given, marks[:, :1])
    triton_conv.conv(new(2, 1, 128), new(128, 4), new(128), new(2, 128, 3), None, "silu")


def products(x):
    scales, starts = torch.rand(2).half(), torch.tensor([0, 100], dtype=torch.int32)
    bytes_of = [torch.zeros(256, 512 * bits // 8, dtype=torch.uint8) for bits in (2, 4, 8)]
    for along_rows in (True, False):
        triton_packed.ternary_linear(x, bytes_of[0], scales, starts, along_rows)
    triton_packed.grouped_linear(x, bytes_of[1], torch.rand(256, 4).half(), None, None, 4)
    zeros, g_idx = torch.zeros(256, 4, dtype=torch.uint8), torch.zeros(512, dtype=torch.int32)
    triton_packed.grouped_linear(x, bytes_of[2], torch.rand(256, 4).half(), zeros, g_idx, 8, x.new_zeros(256))


for dtype in (torch.bfloat16, torch.float32):
    every_kernel(dtype)
with torch.no_grad():
    k, weights = torch.randn(1, 70, 2, 64), torch.zeros(1, 70, 2)
    cache = Cache(torch.zeros(1, 8, 2, 64), torch.zeros(1, 8, 2, 64), torch.full((1, 8, 2), -torch.inf), None)
    for factor in (None, 0.5):
        triton_telescope.telescope(k, k, k, weights, None, cache, [0], None, Reading(Table(8, (2, 4)), 0.1, factor))
