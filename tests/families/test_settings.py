"""What config.json files may say, leave out, or get wrong."""

import json

import pytest

from leanlm import families
from leanlm.errors import CheckpointError, UsageError
from leanlm.families import catalog
from leanlm.model.config import Attention, GatedMLP, Llama3Scaling, Mamba2, ModelConfig, Norm

MODELS = {
    "rene": "rene",
    "llamba": "llamba-1b",
    "mamba_ssm": "mamba2attn-2.7b",
    "hf_mamba": "mamba-7b",
    "hf_bamba": "bamba-9b",
    "hf_llama": "floatlm-99m",
    "fms_llama": "avengers-llama3-1.8b",
}
EXAMPLES = {family: catalog.resolve(name).config for family, name in MODELS.items()}
EXAMPLES["hf_mamba2"] = {"model_type": "mamba2", "hidden_size": 8, "num_hidden_layers": 2, "vocab_size": 11, "head_dim": 4}
EXAMPLES["hf_mamba2"] |= {"num_heads": 4, "n_groups": 1}
EXAMPLES["openlm"] = {"d_model": 8, "n_layer": 2, "vocab_size": 11, "seq_len": 2048}


def read(family: str, names=frozenset(), **changes) -> ModelConfig:
    """An example of the family with keys changed; None removes a key, a dict changes keys within."""
    raw = json.loads(json.dumps(EXAMPLES[family]))
    for key, value in changes.items():
        raw[key] = {**raw.get(key, {}), **value} if isinstance(value, dict) else value
    raw = {key: value for key, value in raw.items() if value is not None}
    return families.find(raw).to_config(raw, names)


def first(config: ModelConfig, kind: type):
    return next(mixer for mixer in config.sublayers if isinstance(mixer, kind))


MISSING = {
    "rene": ("d_model", "n_layer", "vocab_size"),
    "llamba": ("d_model", "n_layer", "vocab_size", "ssm_cfg", "mlp_cfg"),
    "mamba_ssm": ("d_model", "n_layer", "vocab_size"),
    "hf_mamba": ("hidden_size", "num_hidden_layers", "vocab_size"),
    "hf_mamba2": ("hidden_size", "num_hidden_layers", "vocab_size"),
    "hf_bamba": ("hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "intermediate_size"),
    "hf_llama": ("hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "intermediate_size"),
    "fms_llama": ("nheads", "nlayers", "src_vocab_size"),
    "openlm": ("n_layer", "vocab_size"),
}


@pytest.mark.parametrize(("family", "key"), [(family, key) for family, keys in MISSING.items() for key in keys])
def test_missing_keys_are_named(family, key):
    kind = {"openlm": "mamba_ssm", "fms_llama": "fms llama"}.get(family, family.removeprefix("hf_"))
    with pytest.raises(CheckpointError, match=f"'{key}' is missing, and a {kind} checkpoint needs it"):
        read(family, **{key: None})


REFUSED = [
    ("rene", {"attn_cfg": {"causal": False}}, "causal = False"),
    ("rene", {"attn_cfg": {"num_heads": None}}, "'num_heads' is missing"),
    ("rene", {"mlp_layer_idx": [48]}, "mlp_layer_idx names layer 48, and the model has layers 0 to 47"),
    ("rene", {"d_model": "2048"}, "wrong type"),
    ("rene", {"d_model": 2048.0}, "d_model: expected int"),
    ("rene", {"ssm_cfg": {"bias": [1]}}, "wrong type"),
    ("rene", {"vocab_size": -3}, "vocab_size: -3 is not a size"),
    ("rene", {"n_layer": 0, "mlp_layer_idx": [], "attn_layer_idx": []}, "at least one layer"),
    ("llamba", {"mlp_cfg": {"act_fn": "gelu"}}, "act_fn = 'gelu'"),
    ("llamba", {"ssm_cfg": {"activation": "relu"}}, "activation = 'relu'"),
    ("llamba", {"ssm_cfg": {"n_v_heads": 31}}, "do not divide into 31 heads"),
    ("llamba", {"ssm_cfg": {"d_state": 0}}, "d_state: 0 is not a size"),
    ("mamba_ssm", {"ssm_cfg": {"layer": "Mamba3"}}, "layer = 'Mamba3' is not supported"),
    ("mamba_ssm", {"attn_cfg": {"causal": False}}, "causal attention only"),
    ("mamba_ssm", {"attn_cfg": {"causal": None}}, "causal attention only"),
    ("mamba_ssm", {"attn_cfg": {"mlp_dim": 64}}, "mlp_dim = 64"),
    ("mamba_ssm", {"attn_cfg": {"rotary_emb_interleaved": True}}, "rotary_emb_interleaved"),
    ("mamba_ssm", {"attn_layer_idx": [64]}, "attn_layer_idx names layer 64"),
    ("mamba_ssm", {"ssm_cfg": {"headdim": 7}}, "do not divide into heads of 7"),
    ("mamba_ssm", {"ssm_cfg": {"dt_limit": 3}}, "wrong type"),
    ("hf_mamba", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ("hf_mamba2", {"num_heads": 3}, "num_heads = 3 heads of 4 channels do not make up 16"),
    ("hf_mamba2", {"n_groups": 3}, "do not divide into 3 groups"),
    ("hf_bamba", {"mamba_n_heads": 5}, "mamba_n_heads = 5"),
    ("hf_bamba", {"attn_layer_indices": [-1]}, "attn_layer_indices names layer -1"),
    ("hf_llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope type 'linear' is not supported"),
    ("hf_llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope type 'yarn' is not supported"),
    ("hf_llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'low_freq_factor' is missing"),
    ("hf_llama", {"architectures": ["LlamaForSequenceClassification"]}, "architectures = "),
    ("hf_llama", {"num_key_value_heads": 3}, "8 heads cannot share 3 key/value heads"),
    ("hf_llama", {"tie_word_embeddings": "yes"}, "tied: expected bool"),
    ("fms_llama", {"ntk_scaling": True}, "ntk_scaling = True"),
    ("fms_llama", {"fused_weights": False}, "fused_weights = False"),
    ("fms_llama", {"activation_fn": "gelu"}, "activation_fn = 'gelu'"),
]


@pytest.mark.parametrize(
    ("family", "key", "says"),
    [("rene", "d_modl", "did you mean 'd_model'"), ("hf_mamba", "n_layers_typo", ""), ("fms_llama", "kvhead", "'kvheads'")],
)
def test_a_misspelt_setting_of_a_fresh_model(family, key, says):
    raw = families.get(family).from_config(read(family))
    assert families.get(family).to_fresh_config(raw, "config") == families.get(family).to_config(raw)
    with pytest.raises(UsageError, match=rf"config\.{key}: unknown to {family}.*{says}"):
        families.get(family).to_fresh_config({**raw, key: 1}, "config")


def test_a_misspelt_setting_within_a_table():
    raw = families.get("rene").from_config(read("rene"))
    with pytest.raises(UsageError, match=r"config\.ssm_cfg\.d_stat: unknown to rene; did you mean 'd_state'"):
        families.get("rene").to_fresh_config({**raw, "ssm_cfg": {**raw["ssm_cfg"], "d_stat": 4}}, "config")


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED)
def test_refused(family, changes, message):
    with pytest.raises(CheckpointError) as refusal:
        read(family, **changes)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_unknown_families():
    with pytest.raises(CheckpointError, match=r"model_type 'gpt2' is of no family.*llamba.*mamba_ssm"):
        families.find({"model_type": "gpt2"})
    with pytest.raises(CheckpointError, match="without model_type or known keys"):
        families.find({"hidden_size": 4})


@pytest.mark.parametrize("family", EXAMPLES)
def test_found_and_meaningless_keys_are_ignored(family):
    raw = {**EXAMPLES[family], "torch_dtype": "float16", "initializer_range": 0.1, "architectures": None, "whatever": [1]}
    assert families.find(raw).name == family
    assert families.find(raw).to_config(raw) == read(family)


@pytest.mark.parametrize(
    ("family", "key", "default"),
    [
        ("rene", "tie_word_embeddings", True),
        ("llamba", "tie_embeddings", True),
        ("mamba_ssm", "tie_embeddings", True),
        ("openlm", "tie_embeddings", True),
        ("hf_mamba", "tie_word_embeddings", True),
        ("hf_mamba2", "tie_word_embeddings", False),
        ("hf_bamba", "tie_word_embeddings", False),
        ("hf_llama", "tie_word_embeddings", False),
        ("fms_llama", "tie_heads", False),
    ],
)
def test_ties(family, key, default):
    assert read(family, **{key: None}).tied is default
    assert read(family, **{key: not default}).tied is not default
    names = frozenset({"backbone.embedding.weight", "lm_head.weight"})
    assert read(family, names, **{key: True}).tied  # the config's word stands
    assert read(family, names, **{key: None}).tied is (default and family not in ("rene", "llamba"))


def test_rene_defaults():
    config = read("rene", mlp_cfg={}, attn_cfg={"head_dim": None}, pad_vocab_size_multiple=None, rms_norm=False)
    assert config.padded_vocab_size == 50288
    assert config.norm == config.final_norm == Norm("layer", 1e-5)
    assert config.layers[2][0].d_ff == 3 * 2048 and config.layers[2][0].bias
    attention = first(config, Attention)
    assert attention.qkv_bias and attention.out_bias and attention.rope is None
    assert attention.head_dim == 2048 // 24 and attention.n_kv_heads == attention.n_heads


def test_mamba_ssm_rounds_up():
    config = read("mamba_ssm", d_intermediate=129, vocab_size=50281, pad_vocab_size_multiple=16)
    assert first(config, GatedMLP) == GatedMLP(256)
    assert config.padded_vocab_size == 50288
    assert read("mamba_ssm", pad_vocab_size_multiple=None).padded_vocab_size == 50280


def test_mamba_ssm_extra_part_and_limits():
    ssm = {"d_ssm": 64, "rmsnorm": False, "D_has_hdim": True, "dt_limit": [0.001, 0.1], "ngroups": 1}
    mixer = first(read("mamba_ssm", ssm_cfg=ssm), Mamba2)
    assert (mixer.d_inner, mixer.d_mlp, mixer.norm, mixer.d_per_channel) == (64, 2 * 2560 - 64, False, True)
    assert (mixer.dt_min, mixer.dt_max) == (0.001, 0.1)


@pytest.mark.parametrize("infinite", [float("inf"), {"__float__": "Infinity"}])
def test_infinite_limits(infinite):
    assert first(read("hf_mamba2", time_step_limit=[0.0, infinite]), Mamba2).dt_max is None


def test_gated_norm_eps_follows_the_original():
    """transformers takes it from the config, mamba_ssm has 1e-5."""
    assert first(read("hf_mamba2", layer_norm_epsilon=0.03), Mamba2).norm_eps == 0.03
    assert first(read("hf_bamba", rms_norm_eps=0.03), Mamba2).norm_eps == 0.03
    config = read("llamba", norm_epsilon=0.03)
    assert config.norm == Norm("rms", 1e-5, True) and config.final_norm == Norm("rms", 0.03, True)


def test_rope_of_transformers_4_and_5():
    settings = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    scaling = {"rope_type": "llama3", **settings}
    old = read("hf_llama", rope_theta=5e5, rope_scaling=scaling)
    new = read("hf_llama", rope_parameters={**scaling, "rope_theta": 5e5})
    assert old == new
    rope = first(old, Attention).rope
    assert (rope.dim, rope.theta, rope.scaling) == (64, 5e5, Llama3Scaling(8.0, 1.0, 4.0, 64))
    assert first(read("hf_bamba", rope_parameters={"rope_theta": 5e5}), Attention).rope.dim == 64
    assert first(read("hf_bamba", partial_rotary_factor=1.0), Attention).rope.dim == 128


def test_llama_biases_and_head_width():
    config = read("hf_llama", attention_bias=True, mlp_bias=True, head_dim=20, num_key_value_heads=2)
    attention = first(config, Attention)
    assert attention.qkv_bias and attention.out_bias and first(config, GatedMLP).bias
    assert (attention.head_dim, attention.n_kv_heads, attention.rope.dim) == (20, 2, 20)


def test_special_tokens():
    config = read("hf_llama", bos_token_id=1, eos_token_id=[2, 3], pad_token_id=0)
    assert (config.bos_id, config.eos_ids, config.pad_id) == (1, (2, 3), 0)
    assert read("hf_llama", eos_token_id=7).eos_ids == (7,)
    assert read("fms_llama", pad_id=-1).pad_id is None and read("fms_llama", pad_id=0).pad_id == 0


def test_openlm_spellings():
    assert read("openlm") == read("openlm", n_layer=None, n_layers=2)
    assert read("openlm").context_length == 2048
