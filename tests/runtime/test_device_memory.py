"""What is said where a device's memory does not hold a batch."""

import pytest
import torch

from hybrid_models import build
from leanlm.api import Model
from leanlm.errors import LeanLMError, OutOfMemory
from leanlm.evaluate import loss, scoring
from leanlm.generate.session import Session
from leanlm.model.config import Attention, GatedMLP, Mamba2, ModelConfig
from leanlm.runtime import device_memory

HYBRID = ModelConfig(24, 40, ((Mamba2(30, 6, 5),), (Attention(4, 2, 6), GatedMLP(20))), context_length=300)


@pytest.fixture
def card(monkeypatch):
    """card(n) is a device whose memory has n bytes, a third of them taken by this process and as many by another."""

    def of(total):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (total - 2 * (total // 3), total))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: total // 3)

    return of


def exhausted(module, batch):
    with device_memory.enough(module, batch, capacity=100, tokens=50):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def test_the_largest_batch_that_fits_is_named(card):
    module = build(HYBRID)
    one = device_memory.text_bytes(module, 100, 50)
    weights = sum(weight.nbytes for weight in module.weights().values())
    card(3 * int(weights + 7.5 * one / device_memory.SHARE) // 2)
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


def fails_at(monkeypatch, module, call):
    """The module's call of this number, counted from 0, finds no memory."""
    forward, calls = module.forward, []

    def failing(*given, **named):
        calls.append(given)
        if len(calls) > call:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*given, **named)

    monkeypatch.setattr(module, "forward", failing)


@pytest.mark.parametrize("call", [0, 3], ids=["prefill", "decode"])
def test_generating_tells_it(call, card, monkeypatch):
    module = build(HYBRID)
    card(10**6)
    fails_at(monkeypatch, module, call)
    with pytest.raises(OutOfMemory, match=r"asked for 2000 texts of 12 tokens: about \d+ at once fit"):
        Model(module, "mamba_ssm").generate([[1, 2]] * 2000, max_new_tokens=10)


@pytest.mark.parametrize("call", [0, 3], ids=["prefill", "decode"])
def test_a_session_tells_it_and_can_be_continued(call, card, monkeypatch):
    model = Model(build(HYBRID), "mamba_ssm")
    card(1000)
    whole = Session(model)
    whole.generate([1, 2], max_new_tokens=10)
    session = Session(model)
    with monkeypatch.context() as patch:
        fails_at(patch, model.module, call)
        with pytest.raises(OutOfMemory, match="asked for 1 text of 12 tokens: try"):
            session.generate([1, 2], max_new_tokens=10)
    session.generate(max_new_tokens=10 - (len(session.tokens) - len([1, 2])))
    assert session.tokens == whole.tokens


def test_evaluating_tells_it(card, monkeypatch):
    module = build(HYBRID)
    card(10**6)
    fails_at(monkeypatch, module, 0)
    with pytest.raises(OutOfMemory, match="asked for 1 text of 5 tokens"):
        loss.measure(module, [([1, 2, 3, 4], 4)], 0)
    requests = [scoring.Request((1, 2, i), (3,)) for i in range(900)]
    with pytest.raises(OutOfMemory, match=r"asked for 900 texts of 3 tokens: about \d+ at once"):
        list(scoring.score(module, requests, rows=900))
