"""Random tiny hybrids and a byte tokenizer, for tests of generation."""

from types import SimpleNamespace

import torch
from hypothesis import strategies as st

from leanlm.model.config import Attention, DiscreteMamba2, GatedMLP, Mamba1, Mamba2, ModelConfig, Rope
from leanlm.model.language_model import LanguageModel

MIXERS = (
    Mamba1(d_inner=24, d_state=4, dt_rank=2),
    Mamba2(d_inner=16, head_dim=8, d_state=6, n_groups=2, dt_min=0.01, dt_max=0.5),
    DiscreteMamba2(d_inner=16, n_v_heads=4, n_qk_heads=2, d_state=4),
    Attention(n_heads=2, n_kv_heads=1, head_dim=8, window=5),
    Attention(n_heads=2, n_kv_heads=2, head_dim=8, rope=Rope(8)),
    Attention(n_heads=2, n_kv_heads=1, head_dim=8, rope=Rope(4), d_conv=3),
    GatedMLP(d_ff=24),
)
BYTES, EOS = 256, 256


class ByteTokenizer:
    """One token per byte, and an end token."""

    vocab_size, bos_id, eos_ids, pad_id = BYTES + 1, EOS, (EOS,), None

    def encode(self, text, add_special=True):
        return list(text.encode())

    def decode(self, ids, skip_special=True):
        return bytes(i for i in ids if i < BYTES).decode(errors="replace")


def hybrid(layers, seed=0, **settings) -> LanguageModel:
    """A module whose greedy choices are lively: 257 tokens and 7 rows of padding."""
    settings = {"vocab_size": BYTES + 1, "padded_vocab_size": 264, "tied": False, **settings}
    module = LanguageModel(ModelConfig(d_model=16, layers=tuple((mixer,) for mixer in layers), **settings))
    torch.manual_seed(seed)
    module.reset(0.5)
    return module.eval()


def speaker(module, tokenizer=None):
    """What a session needs of a model."""
    return SimpleNamespace(module=module, config=module.config, tokenizer=tokenizer)


layer_lists = st.lists(st.sampled_from(MIXERS), min_size=1, max_size=3)
prompts = st.lists(st.integers(0, BYTES - 1), min_size=1, max_size=12)
samplings = st.sampled_from(
    [
        {},
        {"repetition_penalty": 1.3},
        {"temperature": 0.9},
        {"top_k": 20, "top_p": 0.9, "repetition_penalty": 2},
        {"min_p": 0.05},
    ]
)
