"""Footprints against torch's own allocator, watched while the same step is really done on the CPU."""

import pytest
import torch
import torch.nn.functional as F

from allocator import allocated
from leanlm import families
from leanlm.model import cost, rotary, ternary
from leanlm.model.config import ModelConfig
from leanlm.model.language_model import LanguageModel
from leanlm.ops import merging
from leanlm.train import footprint
from leanlm.train.loss import Objective
from leanlm.train.parallel import prepare_layers
from leanlm.train.precision import autocast
from leanlm.train.recipe import Compute

WINDOWS, LENGTH = 4, 192
LLAMA = {
    "model_type": "llama", "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4,
    "num_attention_heads": 3, "vocab_size": 1024, "rms_norm_eps": 1e-5,
}  # fmt: skip
MAMBA2 = {"d_model": 192, "n_layer": 4, "vocab_size": 1024, "ssm_cfg": {"layer": "Mamba2", "d_state": 64, "headdim": 64}}
MAMBA1 = {"d_model": 64, "n_layer": 1, "vocab_size": 512, "ssm_cfg": {}}
TELESCOPING = {**LLAMA, "model_type": "telescoping_llama", "telescoping": {"cache": "32"}}
MODELS = {
    "llama": ("hf_llama", LLAMA),
    "telescoping": ("hf_llama", TELESCOPING),
    "mamba2": ("mamba_ssm", MAMBA2),
    "mamba1": ("mamba_ssm", MAMBA1),
}


def config_of(name: str) -> ModelConfig:
    family, raw = MODELS[name]
    return families.get(family).to_config(raw)


def one_step(config: ModelConfig, compute: Compute, scales: int = 0):
    module = LanguageModel(config)
    module.reset()
    if scales:
        ternary.mark(module, scales)
    prepare_layers(module, compute)
    objective, tokens = Objective(module), torch.randint(0, config.vocab_size, (WINDOWS, LENGTH))
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def work():
        with autocast(compute, torch.device("cpu")):
            total = objective(tokens, tokens)[0]
        total.backward()

    work()  # what is made once is not counted
    return work


@pytest.mark.parametrize("scales", [0, 1])
@pytest.mark.parametrize("checkpointed", [0.0, 1.0])
@pytest.mark.parametrize("name", ["llama", "telescoping", "mamba2", pytest.param("mamba1", marks=pytest.mark.slow)])
def test_activations_are_what_the_allocator_gives(name, checkpointed, scales, tmp_path):
    config, compute = config_of(name), Compute(checkpoint_blocks=checkpointed)
    before, most = allocated(one_step(config, compute, scales), tmp_path / "trace.json")
    told = footprint.of_step(config, WINDOWS, LENGTH, compute, 1, scales)
    assert told.activations + told.passing == pytest.approx(most - before, rel=0.25)


def test_weights_gradients_and_moments():
    config = config_of("llama")
    n = cost.parameters(config)
    alone = footprint.of_step(config, 1, 64, Compute())
    assert (alone.weights, alone.gradients, alone.optimiser, alone.gathered) == (4 * n, 4 * n, 8 * n, 0)
    shared = footprint.of_step(config, 1, 64, Compute(), shared=8)
    assert shared.weights == -(-4 * n // 8) and shared.gathered > 0 and shared.activations == alone.activations


def test_a_sublayers_input_is_what_recomputing_keeps():
    config = config_of("mamba2")
    (all_kept, _), (kept, passing) = (footprint.of_layers(config, 2, 128, Compute(checkpoint_blocks=s)) for s in (0.0, 1.0))
    part = footprint.of_sublayer(config, config.layers[0][0], 2, 128, "float32")
    assert part.input == 2 * 128 * 192 * 4
    assert (all_kept, kept, passing) == (4 * part.kept, 4 * part.input, part.kept + part.passing)


def test_what_passes_in_a_long_scan_is_never_less_than_nothing(monkeypatch):
    """The more tokens, the more is freed before the most is held."""
    monkeypatch.setattr(footprint, "_observed", lambda config, mixer, windows, tokens, *_: (10 * tokens, 1000 - tokens))
    config = config_of("mamba1")
    found = footprint.of_sublayer(config, config.sublayers[0], 2, 4096, "float32")
    assert (found.kept, found.passing) == (10 * 2 * 4096, 0)


def test_activations_grow_with_windows():
    config = config_of("llama")
    (one, _), (four, _) = (footprint.of_layers(config, windows, 128, Compute()) for windows in (1, 4))
    assert 3 * one < four <= 4 * one


@pytest.mark.parametrize("name", ["llama", "telescoping"])
def test_observing_leaves_nothing_fake_behind(name):
    for remembered in (rotary.frequencies, merging.plan_on, footprint._observed):
        remembered.cache_clear()
    config = config_of(name)
    footprint.of_layers(config, 1, 16, Compute())
    module = LanguageModel(config)
    module.reset()
    assert module(torch.zeros(1, 16, dtype=torch.int64)).isfinite().all()


def test_observing_counts_the_largest_moment():
    with footprint.FakeTensorMode():
        x = torch.empty(1000, requires_grad=True)
        kept, passing = footprint.observe(lambda: F.relu(x * 2), "float32", [x])
    assert kept == 4000  # relu keeps its output, the product nothing
    assert 4000 <= passing <= 12000  # gradients of relu and of the product
