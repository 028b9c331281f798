"""Training on from a checkpoint: every loadable form as float32, ternary ones at exactly their loss."""

import pytest
import torch

from golden_cases import OWN, checkpoint_cases
from hybrid_models import text
from leanlm.checkpoint.load import SENSITIVE, load_module
from leanlm.checkpoint.save import save_module
from leanlm.errors import NotFound
from leanlm.model import ternary
from leanlm.quantize.convert import to_format
from leanlm.train import origin
from leanlm.train.recipe import Model
from tiny_models import copy_case


@pytest.mark.parametrize("case", checkpoint_cases(), ids=lambda case: case.name)
def test_every_checkpoint_can_be_trained_on(case):
    begun = origin.pretrained(Model(from_=str(case.folder)))
    assert {parameter.dtype for parameter in begun.module.parameters()} == {torch.float32} and begun.module.training
    tokens = text(begun.module.config, 1, 12)
    begun.module(tokens).square().mean().backward()
    assert all(parameter.grad is not None for parameter in begun.module.parameters() if parameter.numel())
    with torch.no_grad():
        assert torch.equal(begun.module(tokens), load_module(case.folder, torch.float32).module(tokens))


def test_training_never_writes_to_the_checkpoint(tmp_path):
    folder = copy_case("rene/gqa_groups", tmp_path / "m")
    before = (folder / "model.safetensors").read_bytes()
    begun = origin.pretrained(Model(from_=str(folder)))
    with torch.no_grad():
        for parameter in begun.module.parameters():
            parameter.add_(1)
    assert (folder / "model.safetensors").read_bytes() == before
    assert begun.tokenizer is not None and begun.family.name == "rene"
    assert {n.rpartition(".")[2] for n, p in begun.module.named_parameters() if p.dtype == torch.float32} >= SENSITIVE


@pytest.mark.parametrize(("case", "scheme", "shards"), [("llama/bf16", "int8", 1), ("trilm/trilm_mp3", "ternary", 3)])
def test_packed_checkpoints_begin_with_just_their_values(tmp_path, case, scheme, shards):
    loaded = load_module(OWN / case)
    to_format(loaded.module, scheme)
    save_module(tmp_path / "packed", loaded.module, loaded.family, loaded.raw)
    tokens = text(loaded.config, 1, 12)
    begun = origin.pretrained(Model(from_=str(tmp_path / "packed")))
    assert "packed matrices are trained as floats" in begun.notes[0]
    with torch.no_grad():
        wanted = load_module(tmp_path / "packed", torch.float32).module(tokens)
        torch.testing.assert_close(begun.module(tokens), wanted, atol=1e-5, rtol=1e-5)
        begun = origin.pretrained(Model(from_=str(tmp_path / "packed"), weights="ternary", shards=shards))
        count = len(ternary.latent(begun.module))
        assert begun.notes[0].startswith(f"{count if scheme == 'ternary' else 0} of {count} matrices are ternary already")
        if scheme == "ternary":
            assert torch.equal(begun.module(tokens), wanted)


def test_a_checkpoint_that_is_not_there():
    with pytest.raises(NotFound):
        origin.pretrained(Model(from_="no/such/folder/at-all"))
