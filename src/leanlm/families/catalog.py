"""The catalogue: every published model leanlm knows by name, where it lies and what it costs. Loads no torch.

The configs here only serve to state sizes; loading always reads a checkpoint's own config.json.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from leanlm import families
from leanlm.model import cost
from leanlm.model.config import ModelConfig
from leanlm.model.format import Format, Grouped, Ternary

NEOX = "EleutherAI/gpt-neox-20b"
APACHE = "Apache-2.0"
UNREAD = "sizes from its training code; its config.json was not read"
UNRELEASED = "announced, never released"


@dataclass(frozen=True)
class Entry:
    """One model.

    `repo` is its hub id, None where it was never released (`note` then says so, and how to make it). `tokenizer_repo` is
    where a tokenizer lies if there is none beside the weights. `config` is a config.json of `family`. `bits` are those of a
    weight inside the layers, scales included; `file_bits` those it takes in the released file, None where unknown.
    `format` is what `leanlm quantize` holds the matrices inside the layers in, None for float.
    `licence` is "unknown" where no source of ours states it.
    """

    name: str
    repo: str | None
    tokenizer_repo: str
    family: str
    config: dict
    bits: float = 16
    file_bits: int | None = None
    licence: str = "unknown"
    note: str = ""
    aliases: tuple[str, ...] = ()
    revision: str | None = None
    format: Format | None = None

    @cached_property
    def model(self) -> ModelConfig:
        return families.get(self.family).to_config(self.config)

    @property
    def parameters(self) -> int:
        return cost.parameters(self.model)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the released weights; where there are none, with `bits` inside the layers and 16 bits elsewhere."""
        if self.repo:
            return self.parameters * (self.file_bits or 16) // 8
        inside = cost.linear_parameters(self.model)
        return round((inside * self.bits + (self.parameters - inside) * 16) / 8)

    @property
    def packed_bytes(self) -> int | None:
        """Bytes of the weights once packed, scales included, with 16 bits outside the layers; None for a float model."""
        return cost.weight_bytes(self.model, self.format) if self.format else None

    @property
    def state_bytes(self) -> int:
        """Bytes of one text's state in a 16-bit model."""
        return cost.state_bytes(self.model)


def resolve(name: str) -> Entry | None:
    """The entry of a short name, repository name or hub id, whatever its case; None where there is none."""
    return _INDEX.get(_folded(name))


def _folded(name: str) -> str:
    return name.lower().replace("_", "-").replace(" ", "-")


def _rene() -> Iterator[Entry]:
    config = {
        "model_type": "rene",
        "d_model": 2048,
        "n_layer": 48,
        "vocab_size": 50280,
        "pad_vocab_size_multiple": 16,
        "tie_word_embeddings": False,
        "mlp_layer_idx": [12 * turn + place for turn in range(4) for place in (2, 5, 8, 11)],
        "attn_layer_idx": [6, 18, 30, 42],
        "ssm_cfg": {"norm_before_gate": True},
        "attn_cfg": {"causal": True, "num_heads": 24, "head_dim": 128, "sliding_window_length": 2048},
        "eos_token_id": 50279,
        "pad_token_id": 1,
    }
    note = "sizes reconstructed from its code and the size of its file; its config.json was not read"
    repo, tokenizer = "cartesia-ai/Rene-v0.1-1.3b-pytorch", "allenai/OLMo-1B-hf"
    yield Entry("rene", repo, tokenizer, "rene", config, file_bits=16, licence=APACHE, note=note, aliases=("rene-1.3b",))


LLAMBA = {  # width, layers, MLP width, teacher whose tokenizer it has
    "1B": (2048, 16, 8192, "Llama-3.2-1B"),
    "3B": (3072, 28, 8192, "Llama-3.2-3B"),
    "8B": (4096, 32, 14336, "Llama-3.1-8B"),
    "8B-untied": (4096, 32, 14336, "Llama-3.1-8B"),
}


def _llamba() -> Iterator[Entry]:
    for size, (width, layers, d_ff, teacher) in LLAMBA.items():
        config = {
            "model_type": "llamba",
            "d_model": width,
            "n_layer": layers,
            "vocab_size": 128256,
            "pad_vocab_size_multiple": 8,
            "tie_embeddings": not size.endswith("untied"),
            "mlp_cfg": {"intermediate_size": d_ff},
            "ssm_cfg": {"n_v_heads": 32, "n_qk_heads": 32, "d_state": 64},
        }
        note = "" if size == "3B" else UNREAD
        repo, tokenizer = f"cartesia-ai/Llamba-{size}", f"meta-llama/{teacher}"
        yield Entry(f"llamba-{size.lower()}", repo, tokenizer, "llamba", config, bits=32, file_bits=32, note=note)


MAMBA = {"130m": (768, 24), "370m": (1024, 48), "790m": (1536, 48), "1.4b": (2048, 48), "2.8b": (2560, 64)}  # width, layers
MAMBA2 = {"130m": (768, 24), "370m": (1024, 48), "780m": (1536, 48), "1.3b": (2048, 48), "2.7b": (2560, 64)}


def _mamba() -> Iterator[Entry]:
    for size, (width, layers) in MAMBA.items():
        config = _mamba_ssm(width, layers, ssm_cfg={}, pad_vocab_size_multiple=8)
        yield Entry(f"mamba-{size}", f"state-spaces/mamba-{size}", NEOX, "mamba_ssm", config)
    for size, (width, layers) in MAMBA2.items():
        yield Entry(f"mamba2-{size}", f"state-spaces/mamba2-{size}", NEOX, "mamba_ssm", _mamba_ssm(width, layers))
    config = _mamba_ssm(2560, 64, attn_layer_idx=[9, 18, 27, 36, 45, 56], attn_cfg=_attention(30, d_conv=4))
    yield Entry("mamba2attn-2.7b", "state-spaces/mamba2attn-2.7b", NEOX, "mamba_ssm", config)
    config = {
        "model_type": "mamba",
        "hidden_size": 4096,
        "num_hidden_layers": 64,
        "vocab_size": 50432,
        "time_step_rank": 256,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    repo = "tri-ml/mamba-7b-rw"
    yield Entry("mamba-7b", repo, NEOX, "hf_mamba", config, bits=32, file_bits=32, licence=APACHE)


def _mamba_ssm(width: int, layers: int, **changes) -> dict:
    config = {"d_model": width, "n_layer": layers, "vocab_size": 50277, "ssm_cfg": {"layer": "Mamba2"}}
    return {**config, "pad_vocab_size_multiple": 16, **changes}


def _attention(heads: int, **changes) -> dict:
    """The attention that mamba2attn-2.7b and IBM's hybrids share."""
    config = {"causal": True, "num_heads": heads, "head_dim": 128, "rotary_emb_dim": 64}
    return {**config, "qkv_proj_bias": False, "out_proj_bias": False, **changes}


def _avengers() -> Iterator[Entry]:
    """IBM's Avengers: Llama-3, two telescoping Llamas and hybrids, and Bamba-9B, the hybrid that came of them."""
    tokenizer = "meta-llama/Meta-Llama-3-8B"
    config = {
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
        "max_position_embeddings": 4096,
    }
    repo = "ibm-ai-platform/Bamba-9B"
    yield Entry("bamba-9b", repo, repo, "hf_bamba", config, file_bits=16, licence=APACHE, note=UNREAD)
    config = {
        "src_vocab_size": 128256,
        "emb_dim": 2048,
        "nheads": 16,
        "kvheads": 8,
        "nlayers": 24,
        "hidden_grow_factor": 3.5,
        "rope_theta": 500000.0,
        "max_expected_seq_len": 4096,
    }
    yield Entry("avengers-llama3-1.8b", None, tokenizer, "fms_llama", config, note=UNRELEASED)
    for name, shape, cache in (
        ("tele64", {"src_vocab_size": 32000, "kvheads": 4, "hidden_grow_factor": 3.0}, "64"),
        ("tele128", {"nheads": 32, "kvheads": 2, "hidden_grow_factor": 3.75}, "128"),
    ):
        changed = {**config, **shape, "rope_theta": 10000.0, "telescoping": {"cache": cache}}
        vocabulary = "meta-llama/Llama-2-7b-hf" if name == "tele64" else tokenizer
        yield Entry(f"avengers-{name}", None, vocabulary, "telescoping", changed, note=UNRELEASED)
    for size, width, layers, at, heads in (
        ("1.5b", 2048, 48, [8, 16, 24, 32, 40], 24),
        ("2.9b", 2560, 64, [9, 18, 27, 36, 45, 56], 30),
    ):
        attention = _attention(heads, d_conv=4)
        config = _mamba_ssm(width, layers, vocab_size=128256, attn_layer_idx=at, attn_cfg=attention)
        config["max_position_embeddings"] = 4096
        yield Entry(f"avengers-mamba-{size}", None, tokenizer, "mamba_ssm", config, note=UNRELEASED)


SPECTRA = {  # width, MLP width, heads, layers, model-parallel shards (Spectra, arXiv 2407.12327, table 3)
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
READ_VOCABULARIES = ("99M", "190M", "830M", "3.9B")  # sizes with a config.json that was read
QUANTLM_BITS = {8: 8.0, 6: 6.0, 4: 4.25, 3: 3.25}  # as the paper counts: 4 and 3 bits have 32 bits more per 128 weights
TERNARY_BITS = 1.58


def _spectra() -> Iterator[Entry]:
    for size, (width, d_ff, heads, layers, shards) in SPECTRA.items():
        multiple = 128 * shards
        config = {
            "model_type": "llama",
            "hidden_size": width,
            "intermediate_size": d_ff,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "vocab_size": -(-50277 // multiple) * multiple,
            "rms_norm_eps": 1e-5,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
        predicted = "" if size in READ_VOCABULARIES else f"; vocab_size predicted (a multiple of {multiple})"
        float_lm, tri_lm = f"SpectraSuite/FloatLM_{size}", f"SpectraSuite/TriLM_{size}_Unpacked"
        common = {"family": "hf_llama", "config": config, "licence": APACHE, "tokenizer_repo": NEOX}
        yield Entry(f"floatlm-{size.lower()}", float_lm, file_bits=16, note=predicted.removeprefix("; "), **common)
        note = f"ternary, stored as float16 with up to {shards} scale{'s' if shards > 1 else ''} per matrix{predicted}"
        yield Entry(
            f"trilm-{size.lower()}",
            tri_lm,
            bits=TERNARY_BITS,
            file_bits=16,
            note=note,
            aliases=(f"SpectraSuite/TriLM_{size}",),
            format=Ternary("rows", shards),
            **common,
        )
        for bits, stored in QUANTLM_BITS.items():
            note = f"{UNRELEASED}; make it: leanlm quantize FloatLM-{size} OUT --preset quantlm-{bits}"
            aliases = (f"quantlm-{bits}bit-{size}", f"quantlm-{bits}-bit-{size}", f"quantlm-{bits}-{size}")
            name, format = f"quantlm-{size.lower()}-{bits}bit", Grouped(bits, 128 if bits <= 4 else 0)
            yield Entry(name, None, bits=stored, note=note, aliases=aliases, format=format, **common)


CATALOG: tuple[Entry, ...] = (*_rene(), *_llamba(), *_mamba(), *_avengers(), *_spectra())


def _names(entry: Entry) -> Iterator[str]:
    yield from (entry.name, *entry.aliases)
    if entry.repo:
        yield from (entry.repo, entry.repo.partition("/")[2])


_INDEX = {_folded(name): entry for entry in CATALOG for name in _names(entry)}
