"""What is said where a device's memory does not hold a batch."""

import pytest
import torch

from hybrid_models import build
from leanlm.errors import LeanLMError
from leanlm.model.config import Attention, GatedMLP, Mamba2, ModelConfig
from leanlm.runtime import device_memory

HYBRID = ModelConfig(24, 40, ((Mamba2(30, 6, 5),), (Attention(4, 2, 6), GatedMLP(20))), context_length=300)


@pytest.fixture
def card(monkeypatch):
    """card(n) is a device whose memory has n bytes."""
    return lambda total: monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, total))


def exhausted(module, batch):
    with device_memory.enough(module, batch, capacity=100, tokens=50):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def test_the_largest_batch_that_fits_is_named(card):
    module = build(HYBRID)
    one = device_memory.text_bytes(module, 100, 50)
    weights = sum(weight.nbytes for weight in module.weights().values())
    card(int(weights + 7.5 * one / device_memory.SHARE))
    assert device_memory.largest_batch(module, 100, 50) == 7
    with pytest.raises(LeanLMError, match=r"^out of memory on cpu, asked for 16 texts of 100 tokens: about 7 at once fit$"):
        exhausted(module, 16)


def test_where_not_even_one_fits_other_remedies_are_named(card):
    module = build(HYBRID)
    card(1000)
    with pytest.raises(LeanLMError, match=r"1 text of 100 tokens: try fewer at once, shorter ones, or weights"):
        exhausted(module, 1)


def test_a_text_takes_at_least_its_state():
    module = build(HYBRID)
    short, long = (device_memory.text_bytes(module, capacity, 50) for capacity in (100, 300))
    assert short > module.new_state(1, 100).nbytes
    assert long - short == module.new_state(1, 300).nbytes - module.new_state(1, 100).nbytes


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), device_memory.enough(build(HYBRID), 1, 10, 10):
        raise ZeroDivisionError
