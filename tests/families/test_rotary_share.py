"""Where a Bamba made here keeps the share of a head that is rotated, judged by transformers."""

import pytest
import torch

from leanlm import families
from leanlm.checkpoint.save import save_module
from leanlm.model.config import Attention, GatedMLP, Mamba2, ModelConfig, Norm, Rope
from leanlm.model.language_model import LanguageModel

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("rotated", [4, 8, 16])
@torch.no_grad()
def test_transformers_rotates_as_many_channels(tmp_path, rotated):
    attention = Attention(4, 2, 16, rope=Rope(rotated, 5000.0))
    layers = ((Mamba2(128, 16, d_state=16), GatedMLP(96)), (attention, GatedMLP(96)))
    torch.manual_seed(0)
    module = LanguageModel(ModelConfig(64, 100, layers, norm=Norm(round_first=True), tied=False, context_length=256))
    module.reset(0.3)
    save_module(tmp_path, module, families.get("hf_bamba"))
    tokens = torch.randint(0, 100, (2, 30))
    theirs = transformers.BambaForCausalLM.from_pretrained(tmp_path)(tokens).logits
    torch.testing.assert_close(module(tokens), theirs, rtol=1e-4, atol=1e-4)
