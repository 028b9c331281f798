"""Ternary training of whole models: which matrices, exact packing, exact continuation, what runs and what is saved."""

import pytest
import torch

from golden_cases import OWN, golden_cases
from hybrid_models import ONE_OF_EACH, alone, build, text
from leanlm import families, runtime
from leanlm.checkpoint.load import load_module
from leanlm.checkpoint.save import save_module
from leanlm.errors import CheckFailed, UsageError
from leanlm.model import ternary
from leanlm.model.config import Attention, GatedMLP, ModelConfig, Norm, Rope
from leanlm.model.packed import TernaryWeight
from leanlm.quantize import plan
from leanlm.quantize import ternary as found
from leanlm.quantize.convert import to_format

TRILM = OWN / "trilm/trilm_mp3"
TRILMS = [case for case in golden_cases("trilm") if case.case.startswith("trilm")]  # beside them lies their twin in floats


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_matrices_are_those_that_quantising_would_take(name):
    module = build(alone(ONE_OF_EACH[name], tied=False))
    ternary.mark(module)
    shapes = {name: tuple(matrix.weight.shape) for name, matrix in module.matrices().items()}
    assert set(ternary.latent(module)) == set(plan.make(shapes, "ternary"))


@pytest.mark.parametrize("name", ONE_OF_EACH)
@torch.no_grad()
def test_the_packed_model_computes_what_training_computed(name):
    module = build(alone(ONE_OF_EACH[name]))
    plain = module(text(module.config, 2, 30))
    ternary.mark(module)
    packed = ternary.packed(module)
    for matrix in ternary.latent(module):
        assert isinstance(packed.weights()[matrix], TernaryWeight)
    tokens = text(module.config, 2, 30)
    assert torch.equal(packed(tokens), module(tokens)) and not torch.equal(module(tokens), plain)


def test_packing_is_what_looking_at_the_values_finds():
    module = build(alone(Attention(4, 2, 6)))
    ternary.mark(module, 2)
    packed = ternary.packed(module).weights()
    for name in ternary.latent(module):
        assert packed[name].equal(found.quantize(packed[name].dequantize(torch.float16), name))
        assert packed[name].format.regions == 2
        assert packed[name].format.axis == ("columns" if "out_proj" in name or "down_proj" in name else "rows")


def test_shards_that_do_not_divide_change_nothing():
    module = build(alone(Attention(4, 2, 6)))
    with pytest.raises(UsageError, match=r"layers\.0\.0\.mixer\.q_proj\.weight: 24 outputs do not divide into 5 shards"):
        ternary.mark(module, 5)
    assert not ternary.latent(module)


@pytest.mark.parametrize("case", TRILMS, ids=lambda case: case.name)
@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_a_published_trilm_goes_on_from_its_own_loss(case, packed):
    """Latents of the stored values, then packed again: codes and scales as stored, logits equal to the bit."""
    module, stored = (load_module(case.folder, torch.float32).module for _ in range(2))
    to_format(stored, "ternary")
    if packed:
        to_format(module, "ternary")
    shards = max(len(w.scales) for w in stored.weights().values() if isinstance(w, TernaryWeight))
    tokens = text(module.config, 2, 40)
    wanted = load_module(case.folder, torch.float32).module(tokens)
    ternary.mark(module, shards)
    assert ternary.adopt(module) == len(ternary.latent(module))
    assert torch.equal(module(tokens), wanted)
    again = ternary.packed(module).weights()
    for name in ternary.latent(module):
        assert torch.equal(again[name].codes, stored.weights()[name].codes)
        assert torch.equal(again[name].scales.float(), stored.weights()[name].scales.float())
        assert torch.equal(again[name].starts, stored.weights()[name].starts)


def test_other_regions_than_those_stored_are_refused_with_their_number():
    module = load_module(TRILM, torch.float32).module
    ternary.mark(module, 1)
    with pytest.raises(UsageError, match=r"q_proj.*3 scales along its rows, not 1.*model\.shards"):
        ternary.adopt(module)


def test_a_scale_that_latents_cannot_give_is_refused():
    module = load_module(TRILM, torch.float32).module
    ternary.mark(module, 3)
    with torch.no_grad():
        module.layers[0][0].mixer.k_proj.weight *= 1.0001
    with pytest.raises(CheckFailed, match=r"k_proj\.weight: latent weights cannot give"):
        ternary.adopt(module)


def test_float_weights_become_latents_as_they_are():
    module = build(alone(ONE_OF_EACH["mamba2"]))
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    ternary.mark(module)
    assert ternary.adopt(module) == 0
    assert all(torch.equal(weight, before[name]) for name, weight in module.named_parameters())


def test_a_module_in_training_runs_as_it_is_and_its_packed_copy_natively(native):
    module = build(alone(ONE_OF_EACH["attention with rope"]))
    assert runtime.of(module) is not module
    ternary.mark(module)
    assert runtime.of(module) is module
    packed = ternary.packed(module)
    assert runtime.of(packed) is not packed
    tokens = text(module.config, 1, 12)
    with torch.no_grad():
        near, wanted = runtime.of(packed)(tokens, packed.new_state(1)), module(tokens)
    assert (near - wanted).abs().max() < 0.05 * wanted.abs().max()  # activations in 8 bits


def test_saving_a_module_in_training_saves_it_packed(tmp_path):
    layer = (Attention(4, 4, 6, rope=Rope(6)), GatedMLP(32))
    module = build(ModelConfig(24, 40, (layer,), norm=Norm("rms", 1e-6, round_first=True), context_length=64))
    ternary.mark(module)
    save_module(tmp_path, module, families.get("hf_llama"))
    again = load_module(tmp_path).module
    tokens = text(module.config, 1, 20)
    with torch.no_grad():
        assert torch.equal(again(tokens), module(tokens))
    assert isinstance(again.layers[0][0].mixer.q_proj.weight, TernaryWeight)


@pytest.mark.parametrize("name", ["mamba1", "mamba2", "discrete", "attention with conv"])
def test_it_learns(name):
    """Latents move until codes flip: a text is learned by heart better than by what rounding the start gives."""
    torch.manual_seed(0)
    module = build(alone(ONE_OF_EACH[name])).train()
    module.reset()
    ternary.mark(module)
    tokens = text(module.config, 2, 20)
    optimiser = torch.optim.AdamW(module.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(module(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
