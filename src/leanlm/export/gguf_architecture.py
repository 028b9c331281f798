"""What llama.cpp calls our models: the architecture, its keys, and its tensors, made of ours one by one.

Names and shapes: ggml-org/llama.cpp, src/models/{llama,mamba,mamba2,granite-hybrid}.cpp; the order of rotary channels and the
form of A: its conversion from Hugging Face. Shapes here are ours, outermost first.

R rows  n columns  H heads  P head width  I inner channels  N state width  G groups  K taps
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from leanlm.errors import UsageError
from leanlm.families.names import to_pairs
from leanlm.model import config, rotary
from leanlm.model.attention import Attention
from leanlm.model.config import ModelConfig
from leanlm.model.language_model import LanguageModel
from leanlm.model.linear import Linear, Matrix
from leanlm.model.mamba1 import Mamba1
from leanlm.model.mamba2 import Mamba2
from leanlm.model.mlp import GatedMLP
from leanlm.model.packed import Packed

UNBOUNDED = 1 << 20  # context length of a model that has no limit, as llama.cpp's own conversion says it


class Piece(NamedTuple):
    """A tensor of the file: its name there and in our model, and its weight (as llama.cpp has it).

    `kind`: "layer" for a matrix of a layer that may be quantised, "table" for embedding, head and what else is multiplied by,
    "float32" for what llama.cpp wants in float32.
    """

    name: str
    ours: str
    weight: Tensor | Packed
    kind: str


def name_of(cfg: ModelConfig) -> str:
    """llama, mamba, mamba2 or granitehybrid; raises UsageError with what llama.cpp lacks for any other model."""
    kinds = [tuple(mixer.kind for mixer in layer) for layer in cfg.layers]
    _check_surroundings(cfg)
    for mixer in dict.fromkeys(cfg.sublayers):
        _check_mixer(mixer, cfg)
    for kind in ("attention", "mamba1", "mamba2", "gated_mlp"):
        _need(len({m for m in cfg.sublayers if m.kind == kind}) <= 1, f"{kind} sublayers that differ from one another")
    distinct = set(kinds)
    if distinct == {("attention", "gated_mlp")}:
        attention = cfg.layers[0][0]
        _need(attention.rope is not None, "Llama without rotary positions")
        _need(attention.rope.dim == attention.head_dim, "Llama that rotates part of each head")
        _need(attention.scale is None, "Llama with an attention scale of its own")
        return "llama"
    if distinct == {("mamba1",)}:
        _need(cfg.layers[0][0].d_inner == 2 * cfg.d_model, "Mamba whose inner width is not twice the model's")
        return "mamba"
    if distinct == {("mamba2",)}:
        return "mamba2"
    if distinct == {("mamba2", "gated_mlp"), ("attention", "gated_mlp")}:
        mamba = next(m for m in cfg.sublayers if m.kind == "mamba2")
        _need(mamba.d_inner == 2 * cfg.d_model, "hybrid whose Mamba-2 inner width is not twice the model's")
        return "granitehybrid"
    layers = " and ".join("(" + ", ".join(kind) + ")" for kind in sorted(distinct))
    raise UsageError(f"llama.cpp has no architecture with layers {layers}")


def _need(holds: bool, lacking: str) -> None:
    if not holds:
        raise UsageError(f"llama.cpp has no {lacking}")


def _check_surroundings(cfg: ModelConfig) -> None:
    for norm in (cfg.norm, cfg.final_norm):
        _need(norm.kind == "rms", "layer norm in these architectures")
    _need(cfg.norm.eps == cfg.final_norm.eps, "second epsilon for the final norm")
    _need(not cfg.head_bias, "bias of the head in these architectures")


def _check_mixer(mixer: config.Mixer, cfg: ModelConfig) -> None:
    if isinstance(mixer, config.Attention):
        _need(mixer.window is None, "sliding window in these architectures")
        _need(not mixer.d_conv, "convolution in front of attention")
    elif isinstance(mixer, config.Mamba1):
        _need(not mixer.bias, "bias of Mamba projections")
    elif isinstance(mixer, config.Mamba2):
        _need(not mixer.bias, "bias of Mamba-2 projections")
        _need(mixer.norm and not mixer.norm_before_gate, "Mamba-2 but that with a gated norm after the gate")
        _need(mixer.norm_eps == cfg.norm.eps, "second epsilon for Mamba-2's gated norm")
        _need(not mixer.d_mlp, "gated MLP beside the scan of Mamba-2")
        _need(not mixer.d_per_channel, "D of its own for every channel of Mamba-2")
        _need(mixer.dt_min == 0 and mixer.dt_max is None, "limits of dt")
    elif not isinstance(mixer, config.GatedMLP):
        raise UsageError(f"llama.cpp has no {mixer.kind.replace('_', ' ')} sublayer in any architecture that leanlm writes")


def keys(cfg: ModelConfig) -> dict:
    """The architecture's settings, by the names of the file."""
    name = name_of(cfg)
    settings = {
        "context_length": cfg.context_length or UNBOUNDED,
        "embedding_length": cfg.d_model,
        "block_count": len(cfg.layers),
        "feed_forward_length": next((m.d_ff for m in cfg.sublayers if isinstance(m, config.GatedMLP)), 0),
        "attention.layer_norm_rms_epsilon": cfg.norm.eps,
        "vocab_size": cfg.padded_vocab_size,
        "attention.head_count": 0,
    }
    for mixer in dict.fromkeys(cfg.sublayers):
        settings |= _mixer_keys(mixer)
    if name == "granitehybrid":
        heads = [layer[0].n_kv_heads if isinstance(layer[0], config.Attention) else 0 for layer in cfg.layers]
        rotated = any(isinstance(m, config.Attention) and m.rope for m in cfg.sublayers)
        # llama.cpp tells attention layers by their key/value heads, and rotates where scaling counts as fine-tuned.
        settings |= {"attention.head_count_kv": heads, "rope.scaling.finetuned": rotated}
    return {f"{name}.{key}": value for key, value in settings.items()}


def _mixer_keys(mixer: config.Mixer) -> dict:
    if isinstance(mixer, config.Attention):
        found = {
            "attention.head_count": mixer.n_heads,
            "attention.head_count_kv": mixer.n_kv_heads,
            "attention.key_length": mixer.head_dim,
            "attention.value_length": mixer.head_dim,
        }
        if mixer.rope:
            found |= {"rope.dimension_count": mixer.rope.dim, "rope.freq_base": mixer.rope.theta}
        return found if mixer.scale is None else {**found, "attention.scale": mixer.scale}
    if isinstance(mixer, config.GatedMLP):
        return {}
    found = {"ssm.conv_kernel": mixer.d_conv, "ssm.inner_size": mixer.d_inner, "ssm.state_size": mixer.d_state}
    if isinstance(mixer, config.Mamba1):
        return {**found, "ssm.time_step_rank": mixer.dt_rank}
    return {**found, "ssm.time_step_rank": mixer.n_heads, "ssm.group_count": mixer.n_groups}


def pieces(module: LanguageModel) -> Iterator[Piece]:
    """The tensors of the file, one after the other; made anew, where they are not ours as they stand, at each call."""
    yield from _weight("token_embd", "embedding", module.embedding)
    for i, layer in enumerate(module.layers):
        for j, sublayer in enumerate(layer):
            ours, block = f"layers.{i}.{j}", f"blk.{i}"
            norm = "ffn_norm" if j else "attn_norm"
            yield Piece(f"{block}.{norm}.weight", f"{ours}.norm.weight", sublayer.norm.weight, "float32")
            yield from PIECES[type(sublayer.mixer)](block, f"{ours}.mixer", sublayer.mixer)
    yield Piece("output_norm.weight", "norm.weight", module.norm.weight, "float32")
    if module.head is not None:
        yield from _weight("output", "head", module.head)
    rope = next((m.rope for m in module.config.sublayers if isinstance(m, config.Attention)), None)
    if rope and rope.scaling:
        stretched = rotary.frequencies(rope, torch.device("cpu"))
        plain = rotary.frequencies(config.Rope(rope.dim, rope.theta), torch.device("cpu"))
        yield Piece("rope_freqs.weight", "the stretching of rotary frequencies", plain / stretched, "float32")


def _weight(name: str, ours: str, matrix: Matrix) -> Iterator[Piece]:
    yield Piece(f"{name}.weight", f"{ours}.weight", matrix.weight, "table")


def _linear(name: str, ours: str, linear: Linear, order: Tensor | None = None) -> Iterator[Piece]:
    """A linear layer of ours, its outputs in the given order."""
    weight, bias = linear.weight, linear.bias
    if order is not None:
        weight = weight.take(order) if isinstance(weight, Packed) else weight[order]
    yield Piece(f"{name}.weight", f"{ours}.weight", weight, "layer")
    if bias is not None:
        yield Piece(f"{name}.bias", f"{ours}.bias", bias if order is None else bias[order], "float32")


def _attention(block: str, ours: str, mixer: Attention) -> Iterator[Piece]:
    """llama.cpp rotates neighbouring channels (2i, 2i + 1), we halves (i, i + dim / 2)."""
    cfg = mixer.config
    for name in ("q", "k"):
        heads = cfg.n_heads if name == "q" else cfg.n_kv_heads
        order = _neighbours(heads, cfg.head_dim, cfg.rope.dim) if cfg.rope else None
        yield from _linear(f"{block}.attn_{name}", f"{ours}.{name}_proj", getattr(mixer, f"{name}_proj"), order)
    yield from _linear(f"{block}.attn_v", f"{ours}.v_proj", mixer.v_proj)
    yield from _linear(f"{block}.attn_output", f"{ours}.out_proj", mixer.out_proj)


def _neighbours(heads: int, width: int, rotated: int) -> Tensor:
    """Row numbers [heads * width] that put the halves of the first `rotated` channels of each head side by side."""
    within = torch.cat([to_pairs(torch.arange(rotated), rotated), torch.arange(rotated, width)])
    return (torch.arange(heads)[:, None] * width + within).flatten()


def _gated_mlp(block: str, ours: str, mixer: GatedMLP) -> Iterator[Piece]:
    for name in ("gate", "up", "down"):
        yield from _linear(f"{block}.ffn_{name}", f"{ours}.{name}_proj", getattr(mixer, f"{name}_proj"))


def _scan(block: str, ours: str, mixer: Mamba1 | Mamba2) -> Iterator[Piece]:
    """What both Mambas have; a convolution without bias gets one of zeros."""
    yield from _linear(f"{block}.ssm_in", f"{ours}.in_proj", mixer.in_proj)
    weight, bias = mixer.conv.weight[:, 0], mixer.conv.bias  # [I, K]
    yield Piece(f"{block}.ssm_conv1d.weight", f"{ours}.conv.weight", weight, "float32")
    bias = torch.zeros(len(weight)) if bias is None else bias
    yield Piece(f"{block}.ssm_conv1d.bias", f"{ours}.conv.bias", bias, "float32")
    yield from _linear(f"{block}.ssm_out", f"{ours}.out_proj", mixer.out_proj)


def _rates(block: str, ours: str, A_log: Tensor, D: Tensor) -> Iterator[Piece]:
    """A as what it stands for, the negative decay rates; these two tensors have names without .weight."""
    yield Piece(f"{block}.ssm_a", f"{ours}.A_log", -torch.exp(A_log.detach().float()), "float32")
    yield Piece(f"{block}.ssm_d", f"{ours}.D", D, "float32")


def _mamba1(block: str, ours: str, mixer: Mamba1) -> Iterator[Piece]:
    yield from _scan(block, ours, mixer)
    yield from _rates(block, ours, mixer.A_log, mixer.D)
    yield from _linear(f"{block}.ssm_x", f"{ours}.x_proj", mixer.x_proj)
    yield from _weight(f"{block}.ssm_dt", f"{ours}.dt_proj", mixer.dt_proj)
    yield Piece(f"{block}.ssm_dt.bias", f"{ours}.dt_proj.bias", mixer.dt_proj.bias, "float32")


def _mamba2(block: str, ours: str, mixer: Mamba2) -> Iterator[Piece]:
    yield from _scan(block, ours, mixer)
    yield from _rates(block, ours, mixer.A_log[:, None], mixer.D[:, None])
    yield Piece(f"{block}.ssm_dt.bias", f"{ours}.dt_bias", mixer.dt_bias, "float32")
    norm = mixer.norm_weight.view(mixer.config.n_groups, -1)
    yield Piece(f"{block}.ssm_norm.weight", f"{ours}.norm_weight", norm, "float32")


PIECES = {Attention: _attention, GatedMLP: _gated_mlp, Mamba1: _mamba1, Mamba2: _mamba2}
