"""The measurement of GPU kernels, on tiny shapes on the CPU: that it runs, and what it counts."""

import pytest
import torch

pytest.importorskip("leanlm.ops.native", reason="the native library was not built", exc_type=ImportError)
from leanlm.bench import gpu_kernels
from leanlm.ops import reference

CPU = torch.device("cpu")


def test_both_passes_of_every_side_are_timed():
    found = gpu_kernels.ssd(70, 2, CPU, rate=1e9, heads=2)
    assert found["leanlm_ms"] > 0 and found["share_of_matrix_rate"] > 0


def test_sides_that_are_installed_compute_the_same():
    x, B, C = torch.randn(1, 70, 2, 64), torch.randn(1, 70, 1, 16), torch.randn(1, 70, 1, 16)
    log_decay = -torch.rand(1, 70, 2) - 0.01
    wanted, _ = reference.ssd(x, log_decay, B, C)
    for name, side in gpu_kernels.sides().items():
        if name == "leanlm" or torch.cuda.is_available():
            forward, *arguments = side(x, log_decay, B, C)
            torch.testing.assert_close(forward(*arguments), wanted, atol=1e-3, rtol=1e-3, msg=name)


def test_operations_grow_with_tokens_and_heads():
    assert gpu_kernels.operations(200, 4) == 2 * gpu_kernels.operations(100, 4)
    states = 3 * 2 * 100 * 2 * gpu_kernels.WIDTH * gpu_kernels.STATE  # made and looked at, of a head more
    assert gpu_kernels.operations(100, 5) - gpu_kernels.operations(100, 4) == states + 3 * 2 * 100 * 64 * gpu_kernels.WIDTH


@pytest.mark.parametrize("format", gpu_kernels.FORMATS)
def test_a_product_of_one_row(format, monkeypatch):
    monkeypatch.setattr(gpu_kernels, "BEYOND_CACHES", 1 << 14)
    assert gpu_kernels.one_row(format, 64, 256, 1, CPU)["gb_per_second"] > 0
