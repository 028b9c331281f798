"""Hypothesis strategies: small models that each published format can hold, `CONFIGS[family]`."""

import dataclasses
from collections.abc import Callable

from hypothesis import strategies as st

from leanlm.model.config import (
    MLP,
    Attention,
    DiscreteMamba2,
    GatedMLP,
    Llama3Scaling,
    Mamba1,
    Mamba2,
    Mixer,
    ModelConfig,
    Norm,
    Rope,
    Telescoping,
)

EPSILONS = st.sampled_from([1e-5, 1e-6, 0.03])
THETAS = st.sampled_from([10000.0, 500000.0])
FLAG = st.booleans()
SIZE = st.integers(1, 4)
ID = st.none() | st.integers(0, 30)


@st.composite
def attentions(draw, rope: Callable[[int], st.SearchStrategy] | None = None, **fixed) -> Attention:
    """`rope` makes the rotary settings of a head width; None: no positions."""
    kv, shared, head_dim = draw(st.integers(1, 2)), draw(st.integers(1, 3)), 2 * draw(st.integers(1, 5))
    return Attention(kv * shared, kv, head_dim, rope=draw(rope(head_dim)) if rope else None, **fixed)


def ropes(head_dim: int, partial: bool = False, scaled: bool = False) -> st.SearchStrategy[Rope]:
    dims = st.integers(1, head_dim // 2).map(lambda half: 2 * half) if partial else st.just(head_dim)
    scaling = st.none() | st.just(Llama3Scaling(8.0, 1.0, 4.0, 64)) if scaled else st.none()
    return st.builds(Rope, dims, THETAS, scaling)


@st.composite
def telescopes(draw, attention: Attention, value_is_key: bool = True, **settings) -> Telescoping:
    """The same with a telescoping cache."""
    slots = draw(st.integers(3, 140))
    return Telescoping.of(
        attention,
        slots=slots,
        merges=tuple(sorted(draw(st.sets(st.integers(2, slots - 1), min_size=1, max_size=6)))),
        merge=draw(st.sampled_from(("learned", "self_score", "l2", "mean", "sqrt2"))),
        entry_norm=draw(FLAG),
        entry_norm_eps=draw(EPSILONS),
        mask_empty=draw(FLAG),
        softcap=draw(st.none() | st.just(20.0)),
        head_mix=draw(FLAG),
        value_is_key=value_is_key and draw(FLAG),
        **settings,
    )


@st.composite
def mixed(draw, llama: ModelConfig, mixer: Telescoping) -> ModelConfig:
    """`mixer` in the first layer, and in some others."""
    attention, mlp = llama.layers[0]
    kinds = [mixer, *(draw(st.sampled_from((mixer, attention))) for _ in llama.layers[1:])]
    return dataclasses.replace(llama, layers=tuple((kind, mlp) for kind in kinds))


PARTIAL = st.sampled_from([None, lambda head_dim: ropes(head_dim, partial=True)])


@st.composite
def mamba1s(draw, width: int) -> Mamba1:
    sizes = {name: draw(SIZE) for name in ("d_state", "d_conv", "dt_rank")}
    return Mamba1(draw(st.integers(1, 3 * width)), bias=draw(FLAG), conv_bias=draw(FLAG), **sizes)


@st.composite
def mamba2s(draw, plain: bool = False, eps: float = 1e-5) -> Mamba2:
    """`plain`: without what only mamba_ssm's own class has."""
    groups, heads, head_dim = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(SIZE)
    config = {"d_inner": groups * heads * head_dim, "head_dim": head_dim, "n_groups": groups, "norm_eps": eps}
    config |= {"d_state": draw(SIZE), "d_conv": draw(st.integers(2, 4)), "chunk": draw(st.sampled_from([16, 64, 256]))}
    config |= {"bias": draw(FLAG), "conv_bias": draw(FLAG), "dt_min": draw(st.sampled_from([0.0, 0.01]))}
    config["dt_max"] = draw(st.none() | st.just(0.1))
    if not plain:
        config |= {name: draw(FLAG) for name in ("norm", "norm_before_gate", "d_per_channel")}
        config["d_mlp"] = draw(st.integers(0, 4))
    return Mamba2(**config)


@st.composite
def surroundings(draw, padded: bool = False) -> dict:
    """What a ModelConfig has besides width, layers and norms."""
    vocab = draw(st.integers(1, 40))
    rows = vocab + draw(st.integers(0, 20)) if padded else vocab
    ids = {"bos_id": draw(ID), "pad_id": draw(ID), "eos_ids": draw(st.lists(st.integers(0, 30), max_size=2).map(tuple))}
    ids["context_length"] = draw(st.integers(1, 4096))
    return {"vocab_size": vocab, "padded_vocab_size": rows, "tied": draw(FLAG), **ids}


def layers(*choices: Mixer, then: tuple[Mixer, ...] = ()) -> st.SearchStrategy[tuple]:
    """1 to 4 layers, each one of the choices (the first at least once) followed by `then`."""
    rest = st.lists(st.sampled_from(choices), max_size=3)
    return rest.map(lambda found: tuple((mixer, *then) for mixer in (*found, choices[0])))


@st.composite
def renes(draw) -> ModelConfig:
    width = draw(st.integers(1, 9))
    attention = draw(attentions(qkv_bias=draw(FLAG), out_bias=draw(FLAG), window=draw(st.none() | st.integers(1, 9))))
    attention = draw(telescopes(attention)) if draw(FLAG) else attention
    mlp = MLP(draw(st.integers(1, 30)), bias=draw(FLAG))
    norm = Norm(draw(st.sampled_from(["rms", "layer"])), 1e-5)
    around = draw(surroundings(padded=True))
    return ModelConfig(width, layers=draw(layers(draw(mamba2s()), attention, mlp)), norm=norm, **around)


@st.composite
def llambas(draw) -> ModelConfig:
    qk, shared, head_dim = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    mixer = DiscreteMamba2(
        qk * shared * head_dim,
        qk * shared,
        qk,
        d_state=draw(st.integers(1, 4)),
        d_conv=draw(st.integers(2, 4)),
        conv_activation=draw(st.sampled_from(["identity", "silu"])),
        bias=draw(FLAG),
        conv_bias=draw(FLAG),
    )
    layer = (mixer, GatedMLP(draw(st.integers(1, 9)), draw(FLAG)))
    norms = {"norm": Norm("rms", 1e-5, True), "final_norm": Norm("rms", draw(EPSILONS), True)}
    around = draw(surroundings(padded=True)) | {"head_bias": draw(FLAG)}
    return ModelConfig(draw(st.integers(1, 9)), layers=(layer,) * draw(st.integers(1, 3)), **norms, **around)


@st.composite
def state_spaces(draw, hybrid: bool = True) -> ModelConfig:
    width = draw(st.integers(1, 9))
    scan = draw(mamba1s(width) | mamba2s())
    biases = {"qkv_bias": draw(FLAG), "out_bias": draw(FLAG)}
    choices = {"d_conv": draw(st.sampled_from([0, 4])), "scale": draw(st.sampled_from([None, 0.3]))}
    attention = draw(attentions(draw(PARTIAL), **biases, **choices))
    attention = draw(telescopes(attention)) if not attention.d_conv and draw(FLAG) else attention
    mlp = draw(st.sampled_from([(), (GatedMLP(128),)])) if hybrid else ()
    norm = Norm(draw(st.sampled_from(["rms", "layer"])), 1e-5)
    found = draw(layers(scan, attention, then=mlp) if hybrid else layers(scan))
    around = draw(surroundings(padded=True))
    return ModelConfig(width, layers=found, norm=norm, residual_in_fp32=draw(FLAG), **around)


@st.composite
def hf_mambas(draw) -> ModelConfig:
    width = draw(st.integers(1, 9))
    norm = Norm("rms", draw(EPSILONS), True)
    found = ((draw(mamba1s(width)),),) * draw(st.integers(1, 3))
    return ModelConfig(width, layers=found, norm=norm, residual_in_fp32=draw(FLAG), **draw(surroundings()))


@st.composite
def hf_mamba2s(draw) -> ModelConfig:
    eps = draw(EPSILONS)
    found = ((draw(mamba2s(plain=True, eps=eps)),),) * draw(st.integers(1, 3))
    norm, fp32 = Norm("rms", eps, True), draw(FLAG)
    return ModelConfig(draw(st.integers(1, 9)), layers=found, norm=norm, residual_in_fp32=fp32, **draw(surroundings()))


@st.composite
def bambas(draw) -> ModelConfig:
    eps, bias = draw(EPSILONS), draw(FLAG)
    attention = draw(attentions(draw(PARTIAL), qkv_bias=bias, out_bias=bias))
    mlp = GatedMLP(draw(st.integers(1, 9)), draw(FLAG))
    found = draw(layers(draw(mamba2s(plain=True, eps=eps)), attention, then=(mlp,)))
    return ModelConfig(draw(st.integers(1, 9)), layers=found, norm=Norm("rms", eps, True), **draw(surroundings()))


@st.composite
def llamas(draw) -> ModelConfig:
    bias = draw(FLAG)
    attention = draw(attentions(lambda head_dim: ropes(head_dim, scaled=True), qkv_bias=bias, out_bias=bias))
    layer = (attention, GatedMLP(draw(st.integers(1, 9)), draw(FLAG)))
    norm = Norm("rms", draw(EPSILONS), True)
    llama = ModelConfig(draw(st.integers(1, 9)), layers=(layer,) * draw(st.integers(1, 3)), norm=norm, **draw(surroundings()))
    return draw(mixed(llama, draw(telescopes(attention)))) if draw(FLAG) else llama


@st.composite
def fms_llamas(draw) -> ModelConfig:
    bias = draw(FLAG)
    attention = draw(attentions(ropes, qkv_bias=bias, out_bias=bias))
    layer = (attention, GatedMLP(draw(st.integers(1, 40)), draw(FLAG)))
    norm, width = Norm("rms", draw(EPSILONS), True), attention.n_heads * attention.head_dim
    return ModelConfig(width, layers=(layer,) * draw(st.integers(1, 3)), norm=norm, **draw(surroundings()))


@st.composite
def telescoping_llamas(draw) -> ModelConfig:
    llama = draw(fms_llamas())
    width = llama.layers[0][0].head_dim
    alike = draw(FLAG)
    mixer = draw(telescopes(llama.layers[0][0], v_head_dim=width if alike else draw(st.integers(1, 8)), value_is_key=alike))
    return draw(mixed(llama, mixer))


CONFIGS: dict[str, st.SearchStrategy[ModelConfig]] = {
    "rene": renes(),
    "llamba": llambas(),
    "mamba_ssm": state_spaces(),
    "hf_mamba": hf_mambas(),
    "hf_mamba2": hf_mamba2s(),
    "hf_bamba": bambas(),
    "hf_llama": llamas(),
    "fms_llama": fms_llamas(),
    "telescoping": telescoping_llamas(),
    "openlm": state_spaces(hybrid=False),
}
