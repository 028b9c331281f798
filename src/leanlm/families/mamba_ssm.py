"""The state-spaces format (mamba_ssm's MambaConfig): Mamba-1, Mamba-2, and hybrids with attention and gated MLPs."""

from collections.abc import Collection

from leanlm.errors import CheckpointError
from leanlm.families import caches
from leanlm.families.family import (
    Family,
    Rule,
    head_rules,
    layers_at,
    limits,
    linear_rules,
    mamba1_rules,
    mamba2_rules,
    need,
    norm_rules,
    only,
    padding,
    ratio,
    round_up,
    same,
    stacked_rules,
    token_settings,
    tokens,
)
from leanlm.model.config import Attention, GatedMLP, Mamba1, Mamba2, ModelConfig, Norm, Rope, Telescoping

EPS = 1e-5  # mamba_ssm has no setting for it
MLP_MULTIPLE = 128  # mamba_ssm's GatedMLP rounds its width up to this


def matches(raw: dict) -> bool:
    return "model_type" not in raw and ("ssm_cfg" in raw or {"d_model", "n_layer"} <= raw.keys())


def padded(raw: dict, default: int) -> int:
    """Rows of the embedding: the vocabulary rounded up."""
    return round_up(raw["vocab_size"], raw.get("pad_vocab_size_multiple") or default)


def read(raw: dict, names: Collection[str]) -> ModelConfig:
    width, n_layer = need(raw, "d_model", "mamba_ssm"), need(raw, "n_layer", "mamba_ssm")
    caches.refuse_misplaced(raw, caches.IN_ATTENTION)
    ssm = raw.get("ssm_cfg") or {}
    kind = only(ssm, "layer", ("Mamba1", "Mamba2"), "Mamba1", "mamba_ssm")
    mixer = mamba2_config(ssm, width, "mamba_ssm") if kind == "Mamba2" else mamba1_config(ssm, width)
    attention_at = layers_at(raw, "attn_layer_idx", n_layer)
    attention = attention_config(raw.get("attn_cfg") or {}, width) if attention_at else None
    extra = ()
    if raw.get("d_intermediate"):
        extra = (GatedMLP(round_up(raw["d_intermediate"], MLP_MULTIPLE)),)
    return ModelConfig(
        d_model=width,
        vocab_size=need(raw, "vocab_size", "mamba_ssm"),
        padded_vocab_size=padded(raw, 8),
        layers=tuple((attention if i in attention_at else mixer, *extra) for i in range(n_layer)),
        norm=Norm("rms" if raw.get("rms_norm", True) else "layer", EPS),
        residual_in_fp32=raw.get("residual_in_fp32", True),
        tied=raw.get("tie_embeddings", True),
        **tokens(raw),
    )


def mamba1_config(ssm: dict, width: int) -> Mamba1:
    rank = ssm.get("dt_rank", "auto")
    return Mamba1(
        d_inner=int(ssm.get("expand", 2) * width),
        d_state=ssm.get("d_state", 16),
        d_conv=ssm.get("d_conv", 4),
        dt_rank=-(-width // 16) if rank == "auto" else rank,
        bias=ssm.get("bias", False),
        conv_bias=ssm.get("conv_bias", True),
    )


def mamba2_config(ssm: dict, width: int, family: str) -> Mamba2:
    """A Mamba-2 mixer from the keyword arguments of mamba_ssm's class and their defaults."""
    only(ssm, "activation", ("silu", "swish"), "swish", family)
    inner = int(ssm.get("expand", 2) * width)
    d_ssm = ssm.get("d_ssm") or inner
    low, high = limits(ssm, "dt_limit")
    return Mamba2(
        d_inner=d_ssm,
        head_dim=ssm.get("headdim", 64),
        d_state=ssm.get("d_state", 128),
        n_groups=ssm.get("ngroups", 1),
        d_conv=ssm.get("d_conv", 4),
        d_mlp=inner - d_ssm,
        chunk=ssm.get("chunk_size", 256),
        norm=ssm.get("rmsnorm", True),
        norm_before_gate=ssm.get("norm_before_gate", False),
        dt_min=low,
        dt_max=high,
        d_per_channel=ssm.get("D_has_hdim", False),
        bias=ssm.get("bias", False),
        conv_bias=ssm.get("conv_bias", True),
    )


def mamba2_settings(mixer: Mamba2, width: int) -> dict:
    """The inverse of `mamba2_config`."""
    settings = {
        "d_state": mixer.d_state,
        "headdim": mixer.head_dim,
        "ngroups": mixer.n_groups,
        "d_conv": mixer.d_conv,
        "expand": ratio(mixer.d_inner + mixer.d_mlp, width),
        "chunk_size": mixer.chunk,
        "rmsnorm": mixer.norm,
        "norm_before_gate": mixer.norm_before_gate,
        "D_has_hdim": mixer.d_per_channel,
        "bias": mixer.bias,
        "conv_bias": mixer.conv_bias,
    }
    if mixer.d_mlp:
        settings["d_ssm"] = mixer.d_inner
    if mixer.dt_min or mixer.dt_max is not None:
        settings["dt_limit"] = [mixer.dt_min, float("inf") if mixer.dt_max is None else mixer.dt_max]
    return settings


def attention_config(cfg: dict, width: int) -> Attention | Telescoping:
    """mamba_ssm's MHA from its keyword arguments; it is causal only where the config says so. A table `telescoping` is ours."""
    if not cfg.get("causal", False):
        raise CheckpointError("config.json: attn_cfg.causal is not true; leanlm runs causal attention only")
    caches.refuse_misplaced(cfg, caches.IN_ATTENTION, caches.KEY)
    only(cfg, "mlp_dim", (0,), 0, "mamba_ssm attention")
    only(cfg, "rotary_emb_interleaved", (False,), False, "mamba_ssm attention")
    heads = need(cfg, "num_heads", "mamba_ssm attention")
    rotated = cfg.get("rotary_emb_dim", 0)
    attention = Attention(
        n_heads=heads,
        n_kv_heads=cfg.get("num_heads_kv") or heads,
        head_dim=cfg.get("head_dim") or width // heads,
        rope=Rope(rotated, float(cfg.get("rotary_emb_base", 10000.0))) if rotated else None,
        scale=cfg.get("softmax_scale"),
        d_conv=cfg.get("d_conv", 0),
        qkv_bias=cfg.get("qkv_proj_bias", True),
        out_bias=cfg.get("out_proj_bias", True),
    )
    return caches.telescoping(cfg, attention, "attn_cfg.") if caches.KEY in cfg else attention


def write(config: ModelConfig) -> dict:
    firsts = [layer[0] for layer in config.layers]
    attention = [i for i, m in enumerate(firsts) if isinstance(m, Attention | Telescoping)]
    scan = next((m for m in firsts if not isinstance(m, Attention | Telescoping)), None)
    raw = {
        "d_model": config.d_model,
        "d_intermediate": config.layers[0][1].d_ff if len(config.layers[0]) > 1 else 0,
        "n_layer": len(config.layers),
        "vocab_size": config.vocab_size,
        "ssm_cfg": {},
        "attn_layer_idx": attention,
        "attn_cfg": _attention_settings(firsts[attention[0]]) if attention else {},
        "rms_norm": config.norm.kind == "rms",
        "residual_in_fp32": config.residual_in_fp32,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": padding(config),
        "tie_embeddings": config.tied,
        **token_settings(config, nulls=False),
    }
    if isinstance(scan, Mamba2):
        raw["ssm_cfg"] = {"layer": "Mamba2", **mamba2_settings(scan, config.d_model)}
    elif isinstance(scan, Mamba1):
        raw["ssm_cfg"] = {
            "layer": "Mamba1",
            "d_state": scan.d_state,
            "d_conv": scan.d_conv,
            "expand": ratio(scan.d_inner, config.d_model),
            "dt_rank": scan.dt_rank,
            "bias": scan.bias,
            "conv_bias": scan.conv_bias,
        }
    return raw


def _attention_settings(mixer: Attention | Telescoping) -> dict:
    settings = {
        "causal": True,
        "num_heads": mixer.n_heads,
        "num_heads_kv": mixer.n_kv_heads,
        "head_dim": mixer.head_dim,
        "d_conv": getattr(mixer, "d_conv", 0),
        "qkv_proj_bias": mixer.qkv_bias,
        "out_proj_bias": mixer.out_bias,
        "rotary_emb_dim": mixer.rope.dim if mixer.rope else 0,
    }
    if mixer.rope:
        settings["rotary_emb_base"] = mixer.rope.theta
    if mixer.scale is not None:
        settings["softmax_scale"] = mixer.scale
    if isinstance(mixer, Telescoping):
        settings[caches.KEY] = caches.table(mixer)
    return settings


def rules(config: ModelConfig):
    table = [same("backbone.embedding.weight", "embedding.weight")]
    for i, layer in enumerate(config.layers):
        theirs, ours, mixer = f"backbone.layers.{i}", f"layers.{i}.0", layer[0]
        table += norm_rules(f"{theirs}.norm", f"{ours}.norm", config.norm)
        if isinstance(mixer, Mamba1):
            table += mamba1_rules(f"{theirs}.mixer", f"{ours}.mixer", mixer)
        elif isinstance(mixer, Mamba2):
            table += mamba2_rules(f"{theirs}.mixer", f"{ours}.mixer", mixer)
        else:
            table += attention_rules(f"{theirs}.mixer", f"{ours}.mixer", mixer)
        if len(layer) > 1:
            ours, d_ff = f"layers.{i}.1", layer[1].d_ff
            table += norm_rules(f"{theirs}.norm2", f"{ours}.norm", config.norm)
            # fc1 holds the value first, then the gate.
            table += stacked_rules(f"{theirs}.mlp.fc1", f"{ours}.mixer", {"up_proj": d_ff, "gate_proj": d_ff}, False)
            table += linear_rules(f"{theirs}.mlp.fc2", f"{ours}.mixer.down_proj", False)
    return [*table, *norm_rules("backbone.norm_f", "norm", config.final_norm), *head_rules(config)]


def attention_rules(theirs: str, ours: str, mixer: Attention | Telescoping) -> list[Rule]:
    """Of Rene's attention too."""
    return [
        *stacked_rules(f"{theirs}.in_proj", ours, caches.rows(mixer), mixer.qkv_bias),
        *linear_rules(f"{theirs}.out_proj", f"{ours}.out_proj", mixer.out_bias),
        *(linear_rules(f"{theirs}.conv1d", f"{ours}.conv", True) if getattr(mixer, "d_conv", 0) else []),
        *caches.own_rules(theirs, ours, mixer),
    ]


FAMILY = Family("mamba_ssm", matches, read, write, rules, pickled=True)
