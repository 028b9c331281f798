"""Every published model leanlm knows by name: where it lies, what it costs, what of this was read and what reconstructed.

Sizes come from small tables; loading always reads a checkpoint's own config.json. Loads no torch.
"""

import difflib
import functools
from dataclasses import dataclass

from leanlm import families
from leanlm.model import cost
from leanlm.model.config import ModelConfig

NEOX, OLMO = "EleutherAI/gpt-neox-20b", "allenai/OLMo-1B-hf"
APACHE = "apache-2.0"


@dataclass(frozen=True)
class Entry:
    """One published model. `repo` is None where nothing was released; `note` then says how to make it.

    `config` is its config.json as published, or as far as the sources tell; `bits` are those of a weight inside the layers
    as released, `tokenizer_repo` where its tokenizer lies when not beside the weights.
    """

    name: str
    repo: str | None
    family: str
    config: dict
    tokenizer_repo: str | None = None
    revision: str | None = None
    bits: float = 16
    licence: str = "unknown"
    note: str = ""
    aliases: tuple[str, ...] = ()

    @functools.cached_property
    def model(self) -> ModelConfig:
        return families.get(self.family).to_config(self.config)

    @property
    def parameters(self) -> int:
        return cost.parameters(self.model)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights: those inside the layers at `bits`, the rest at 16 bits (32 where all is stored so)."""
        inner = cost.linear_parameters(self.model)
        return round((inner * self.bits + (self.parameters - inner) * max(16, self.bits)) / 8)

    @property
    def state_bytes(self) -> int:
        return cost.state_bytes(self.model)


def _rene() -> list[Entry]:
    config = {
        "model_type": "rene",
        "d_model": 2048,
        "n_layer": 48,
        "vocab_size": 50280,
        "pad_vocab_size_multiple": 16,
        "eos_token_id": 50279,
        "pad_token_id": 1,
        "tie_word_embeddings": False,
        "mlp_layer_idx": [12 * block + place for block in range(4) for place in (2, 5, 8, 11)],
        "attn_layer_idx": [6, 18, 30, 42],
        "ssm_cfg": {"norm_before_gate": True},
        "mlp_cfg": {"expand": 3},
        "attn_cfg": {
            "causal": True,
            "num_heads": 24,
            "head_dim": 128,
            "sliding_window_length": 2048,
            "qkv_proj_bias": False,
            "out_proj_bias": False,
        },
    }
    note = "layout reconstructed from the code and the size of the file; the checkpoint's own config.json decides"
    return [Entry("rene-1.3b", "cartesia-ai/Rene-v0.1-1.3b-pytorch", "rene", config, OLMO, licence=APACHE, note=note,
                  aliases=("rene", "rene-v0.1-1.3b-pytorch"))]  # fmt: skip


def _llamba() -> list[Entry]:
    sizes = {"1B": (2048, 16, 8192, True), "3B": (3072, 28, 8192, True), "8B": (4096, 32, 14336, True)}
    sizes["8B-untied"] = (4096, 32, 14336, False)
    teachers = {"1B": "Llama-3.2-1B", "3B": "Llama-3.2-3B", "8B": "Llama-3.1-8B"}
    entries = []
    for size, (width, layers, ff, tied) in sizes.items():
        config = {
            "model_type": "llamba",
            "vocab_size": 128256,
            "tie_embeddings": tied,
            "pad_vocab_size_multiple": 8,
            "d_model": width,
            "n_layer": layers,
            "norm_epsilon": 1e-5,
            "mlp_cfg": {"intermediate_size": ff, "bias": False, "act_fn": "silu"},
            "ssm_cfg": {"d_state": 64, "n_v_heads": 32, "n_qk_heads": 32, "expand": 1, "activation": "identity", "bias": False},
        }
        tokenizer = f"meta-llama/{teachers[size.removesuffix('-untied')]}"
        note = "" if size == "3B" else "shape from the training code, not from its config.json"
        entries.append(
            Entry(f"llamba-{size.lower()}", f"cartesia-ai/Llamba-{size}", "llamba", config, tokenizer, bits=32, note=note)
        )
    return entries


def _mamba() -> list[Entry]:
    widths = {"130m": (768, 24), "370m": (1024, 48), "1.4b": (2048, 48), "2.8b": (2560, 64)}
    entries = []
    for size, (width, layers) in {**widths, "790m": (1536, 48)}.items():
        config = {"d_model": width, "n_layer": layers, "vocab_size": 50277, "ssm_cfg": {}, "pad_vocab_size_multiple": 8}
        entries.append(Entry(f"mamba-{size}", f"state-spaces/mamba-{size}", "mamba_ssm", config, NEOX, licence=APACHE))
    for size, (width, layers) in {**widths, "780m": (1536, 48), "1.3b": (2048, 48), "2.7b": (2560, 64)}.items():
        if size in ("1.4b", "2.8b"):
            continue
        config = {"d_model": width, "n_layer": layers, "vocab_size": 50277, "ssm_cfg": {"layer": "Mamba2"},
                  "pad_vocab_size_multiple": 16}  # fmt: skip
        entries.append(Entry(f"mamba2-{size}", f"state-spaces/mamba2-{size}", "mamba_ssm", config, NEOX, licence=APACHE))
    hybrid = _hybrid(2560, 64, [9, 18, 27, 36, 45, 56], 30, vocab_size=50277)
    entries.append(Entry("mamba2attn-2.7b", "state-spaces/mamba2attn-2.7b", "mamba_ssm", hybrid, NEOX, licence=APACHE))
    tri = {
        "model_type": "mamba",
        "hidden_size": 4096,
        "intermediate_size": 8192,
        "num_hidden_layers": 64,
        "state_size": 16,
        "conv_kernel": 4,
        "time_step_rank": 256,
        "vocab_size": 50432,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    return [*entries, Entry("mamba-7b", "TRI-ML/mamba-7b-rw", "hf_mamba", tri, NEOX, bits=32, licence=APACHE,
                            aliases=("mamba-7b-rw",))]  # fmt: skip


def _hybrid(width: int, layers: int, attention: list[int], heads: int, **changes) -> dict:
    """The layout that mamba2attn-2.7b and IBM's hybrids share, with what a model changes of it."""
    attn = {"causal": True, "d_conv": 4, "head_dim": 128, "num_heads": heads, "out_proj_bias": False, "qkv_proj_bias": False,
            "rotary_emb_dim": 64}  # fmt: skip
    config = {"d_model": width, "d_intermediate": 0, "n_layer": layers, "vocab_size": 128256, "ssm_cfg": {"layer": "Mamba2"},
              "attn_layer_idx": attention, "attn_cfg": attn, "pad_vocab_size_multiple": 16, "tie_embeddings": True}  # fmt: skip
    attn |= changes.pop("attn", {})
    return {**config, **changes}


def _avengers() -> list[Entry]:
    """IBM's Avengers: its hybrids and its Llama-3 baseline were never released; Bamba-9B was, in two forms."""
    bamba = {
        "model_type": "bamba",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "attn_layer_indices": [9, 18, 27],
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "mamba_n_heads": 128,
        "mamba_d_head": 64,
        "mamba_d_state": 128,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
        "max_position_embeddings": 4096,
    }
    unreleased = "announced, never released; `leanlm train` can make its like"
    llama = {"src_vocab_size": 128256, "emb_dim": 2048, "nheads": 16, "kvheads": 8, "nlayers": 24, "hidden_grow_factor": 3.5,
             "rope_theta": 500000.0, "max_expected_seq_len": 4096}  # fmt: skip
    return [
        Entry("bamba-9b", "ibm-ai-platform/Bamba-9B", "hf_bamba", bamba, note="IBM's released hybrid of the same layout"),
        Entry("avengers-llama3-1.8b", None, "fms_llama", llama, note=unreleased),
        Entry("avengers-mamba-1.5b", None, "mamba_ssm", _hybrid(2048, 48, [8, 16, 24, 32, 40], 24), note=unreleased),
        Entry("avengers-mamba-2.9b", None, "mamba_ssm", _hybrid(2560, 64, [9, 18, 27, 36, 45, 56], 30), note=unreleased),
        Entry(
            "avengers-mamba-9.8b",
            None,
            "mamba_ssm",
            _hybrid(
                4096, 32, [9, 18, 27], 32, d_intermediate=14336, tie_embeddings=False, attn={"d_conv": 0, "num_heads_kv": 8}
            ),
            note=unreleased,
        ),
    ]


SPECTRA = {  # hidden, GLU, heads, layers, model-parallel shards (Spectra, arXiv 2407.12327, table 3)
    "99M": (512, 1280, 8, 16, 1),
    "190M": (768, 2048, 12, 16, 1),
    "390M": (1024, 2560, 16, 24, 1),
    "560M": (1280, 3072, 20, 24, 1),
    "830M": (1536, 4096, 24, 24, 1),
    "1.1B": (1792, 5120, 28, 24, 2),
    "1.5B": (2048, 6144, 32, 24, 2),
    "2.4B": (2304, 7680, 36, 30, 3),
    "3.9B": (3072, 9216, 24, 30, 6),
}
QUANTLM_BITS = {8: 8.0, 6: 6.0, 4: 4.25, 3: 3.25}  # per weight, scales of groups of 128 at 4 and 3 bits included
SEEN_VOCABULARIES = ("99M", "190M", "830M", "3.9B")  # sizes whose config was read; the others are predicted


def _spectra() -> list[Entry]:
    entries = []
    for size, (width, ff, heads, layers, shards) in SPECTRA.items():
        vocabulary = -(-50277 // (128 * shards)) * 128 * shards
        config = {
            "model_type": "llama",
            "hidden_size": width,
            "intermediate_size": ff,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "vocab_size": vocabulary,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "tie_word_embeddings": False,
        }
        note = "" if size in SEEN_VOCABULARIES else "rows of the vocabulary predicted from the padding rule"
        common = {"family": "hf_llama", "config": config, "licence": APACHE}
        entries.append(Entry(f"floatlm-{size.lower()}", f"SpectraSuite/FloatLM_{size}", note=note, **common))
        entries.append(Entry(f"trilm-{size.lower()}", f"SpectraSuite/TriLM_{size}_Unpacked", note=note or (
            f"ternary weights in float16, up to {shards} scale{'s' * (shards > 1)} per matrix"), **common))  # fmt: skip
        for bits, true_bits in QUANTLM_BITS.items():
            make = f"leanlm quantize floatlm-{size.lower()} OUT --scheme quantlm-{bits}"
            entries.append(Entry(f"quantlm-{size.lower()}-{bits}bit", None, bits=true_bits, **common,
                                 note=f"announced, never released; `{make}` will make it (not in this version)"))  # fmt: skip
    return entries


@functools.cache
def entries() -> tuple[Entry, ...]:
    """The whole catalogue."""
    return (*_rene(), *_llamba(), *_mamba(), *_avengers(), *_spectra())


@functools.cache
def _index() -> dict[str, Entry]:
    index = {}
    for entry in entries():
        names = [entry.name, *entry.aliases]
        if entry.repo:
            names += [entry.repo, entry.repo.partition("/")[2], entry.repo.partition("/")[2].removesuffix("_Unpacked")]
        index |= {_folded(name): entry for name in names}
    return index


def _folded(name: str) -> str:
    return name.lower().replace("_", "-")


def resolve(name: str) -> Entry | None:
    """The entry of a short name or hub id, whatever its case; None where the catalogue has none."""
    return _index().get(_folded(name))


def nearest(name: str) -> str | None:
    """The catalogue name most like `name`, for error messages."""
    near = difflib.get_close_matches(_folded(name), [*_index(), "builtin"], 1)
    return near[0] if near else None
