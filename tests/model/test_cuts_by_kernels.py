"""The contract of state, of batches and of what is saved, by the GPU kernels: on a card, and under Triton's interpreter."""

import pytest
import test_cuts
import torch

from hybrid_models import ONE_OF_EACH, alone, build, text
from leanlm.api import Model
from leanlm.model.config import Attention, Mamba2, ModelConfig, Rope

MAMBA, BOUNDED, FULL = Mamba2(16, 8, 6, 2), Attention(2, 1, 8, window=5), Attention(2, 2, 8, rope=Rope(8))
HYBRID = ModelConfig(24, 40, ((MAMBA,), (BOUNDED,), (FULL,)), context_length=60)
NAMES = ("mamba1", "mamba2 with groups", "mamba2 per channel, dt limits", "discrete, unequal heads", "telescoping")
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]
    ),
]


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    """Where texts of test_cuts lie meanwhile; on the CPU the kernels are forced, for short texts."""
    pytest.importorskip("triton", reason="Triton is not installed")
    if request.param == "cpu":
        if torch.cuda.is_available():
            pytest.skip("kernels are not interpreted beside a card")
        monkeypatch.setenv("LEANLM_IMPL", "triton")
    pack = test_cuts.pack
    monkeypatch.setattr(test_cuts, "text", lambda *given: text(*given).to(request.param))
    monkeypatch.setattr(test_cuts, "pack", lambda lengths: pack(lengths).to(request.param))
    return request.param


@pytest.mark.parametrize("name", NAMES)
def test_cuts_of_every_mixer(name, device):
    model = build(alone(ONE_OF_EACH[name])).to(device)
    tokens = test_cuts.text(model.config, 2, 9)
    test_cuts.check_cut(model, tokens, [3, 1, 5], test_cuts.FLOAT32)


def test_packed_documents_of_a_hybrid(device):
    model = build(HYBRID).to(device)
    test_cuts.check_packed(model, [5, 1, 3])
    test_cuts.check_packed_cut(model, [3, 1, 4], [2, 6])


def test_rows_at_different_positions(device):
    test_cuts.check_ragged(build(HYBRID).to(device), [0, 4], [1, 3])


@torch.no_grad()
def test_a_saved_state_is_continued(device, tmp_path):
    module = build(HYBRID).to(device)
    model, tokens = Model(module, "mamba_ssm"), test_cuts.text(HYBRID, 2, 12)
    state = model.new_state(2, 20)
    module(tokens[:, :8], state)
    model.save_state(state, tmp_path / "state")
    resumed = model.load_state(tmp_path / "state")
    for i in range(8, 12):
        assert torch.equal(module(tokens[:, i : i + 1], resumed), module(tokens[:, i : i + 1], state))


def test_a_ragged_batch_says_what_its_rows_say_alone(device):
    model = Model(build(HYBRID).to(device), "mamba_ssm")
    texts = [[1, 2, 3], [9]]
    for sampling in ({}, {"temperature": 0.9, "top_p": 0.9}):
        together = model.generate(texts, max_new_tokens=3, seed=3, **sampling)
        assert together == [model.generate(one, max_new_tokens=3, seed=3 + row, **sampling) for row, one in enumerate(texts)]
