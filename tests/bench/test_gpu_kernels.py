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


class Clock:
    """In the place of CUDA events: a card on which the work takes 3 milliseconds, and a launch from Python one more."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = Clock.now

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return other.at - self.at


def passing(milliseconds):
    def work():
        Clock.now += milliseconds

    return work


@pytest.mark.parametrize("capturable", [True, False])
def test_work_is_timed_without_its_launches_where_it_can_be_captured(capturable, monkeypatch):
    def captured(step, stream, pool):
        if not capturable:
            raise RuntimeError("operation not permitted when stream is capturing")
        return passing(3)

    monkeypatch.setattr(gpu_kernels, "captured", captured)
    for name, stand_in in (("Event", Clock), ("Stream", lambda device: None), ("graph_pool_handle", lambda: (0, 1))):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    card = torch.device("cuda", 0)
    entries = {"ours": gpu_kernels.Entry(passing(4), card)}
    assert gpu_kernels.medians(entries, 3)["ours"] == pytest.approx(0.003 if capturable else 0.004)
    assert entries["ours"].times == (6 if capturable else 5)
    monkeypatch.setattr(gpu_kernels.dispatch, "fallbacks", lambda device: {})
    assert gpu_kernels.remarks(entries, card) == ({} if capturable else {"with_launches": ["ours"]})
