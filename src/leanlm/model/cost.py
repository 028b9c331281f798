"""What a model of a config costs, without building it: parameters, weight bytes, bytes of state per text. Loads no torch."""

from leanlm.model.config import (
    MLP,
    Attention,
    DiscreteMamba2,
    GatedMLP,
    Mamba1,
    Mamba2,
    Mixer,
    ModelConfig,
    Norm,
    Telescoping,
)
from leanlm.model.format import Format

FLOAT32 = 4  # bytes; recurrent states are kept in it
POSITION = 8  # bytes of an int64


def parameters(config: ModelConfig) -> int:
    """Number of weights; a tied head counts once."""
    table = config.padded_vocab_size * config.d_model
    total = table + _norm(config.final_norm, config.d_model)
    if not config.tied:
        total += table + (config.padded_vocab_size if config.head_bias else 0)
    return total + sum(_mixer(m, config.d_model) + _norm(config.norm, config.d_model) for m in config.sublayers)


def linear_parameters(config: ModelConfig) -> int:
    """Weights of the matrices inside the layers: those that few-bit formats hold."""
    return sum(i * o for mixer in config.sublayers for i, o in _matrices(mixer, config.d_model))


def weight_bytes(config: ModelConfig, format: Format, dtype_bytes: int = 2) -> int:
    """Bytes of all weights with the matrices inside the layers in `format`, scales included, and the rest in floats of
    `dtype_bytes`."""
    shapes = [shape for mixer in config.sublayers for shape in _matrices(mixer, config.d_model)]
    inside = sum(i * o for i, o in shapes)
    return int(sum(format.size(o, i) for i, o in shapes) // 8 + (parameters(config) - inside) * dtype_bytes)


def state_bytes(config: ModelConfig, capacity: int | None = None, dtype_bytes: int = 2) -> int:
    """Bytes one text's state takes: scans in float32, convolution tails and keys/values at `dtype_bytes`.

    `capacity` is the tokens that full attention has room for (default: the context length, 2,048 where unknown).
    """
    room = capacity or config.context_length or 2048
    return sum(_state(mixer, room, dtype_bytes) for mixer in config.sublayers)


def _norm(norm: Norm, width: int) -> int:
    return width * (2 if norm.kind == "layer" else 1)


def _matrices(mixer: Mixer, width: int) -> list[tuple[int, int]]:
    """(in, out) of every linear layer."""
    match mixer:
        case Attention():
            inner, shared = mixer.n_heads * mixer.head_dim, mixer.n_kv_heads * mixer.head_dim
            return [(width, inner), (width, shared), (width, shared), (inner, width)]
        case Telescoping():
            heads, shared = mixer.n_heads, mixer.n_kv_heads
            outs = [heads * mixer.head_dim, shared * mixer.head_dim]
            outs += [] if mixer.value_is_key else [shared * mixer.v_head_dim]
            outs += [shared] if mixer.merge == "learned" else []
            return [*((width, out) for out in outs), (heads * mixer.v_head_dim, width)]
        case MLP():
            return [(width, mixer.d_ff), (mixer.d_ff, width)]
        case GatedMLP():
            return [(width, mixer.d_ff), (width, mixer.d_ff), (mixer.d_ff, width)]
        case Mamba1():
            inner, rank = mixer.d_inner, mixer.dt_rank
            return [(width, 2 * inner), (inner, rank + 2 * mixer.d_state), (rank, inner), (inner, width)]
        case Mamba2():
            rows = 2 * mixer.d_mlp + mixer.d_inner + convolved(mixer) + mixer.n_heads
            return [(width, rows), (mixer.d_inner + mixer.d_mlp, width)]
        case DiscreteMamba2():
            return [(width, convolved(mixer) + mixer.d_inner + mixer.n_v_heads), (mixer.d_inner, width)]


def _biases(mixer: Mixer, width: int) -> int:
    outs = [out for _, out in _matrices(mixer, width)]
    match mixer:
        case Attention():
            return sum(outs[:3]) * mixer.qkv_bias + width * mixer.out_bias
        case Telescoping():
            return sum(outs[: 2 if mixer.value_is_key else 3]) * mixer.qkv_bias + width * mixer.out_bias
        case Mamba1():
            return (outs[0] + outs[3]) * mixer.bias + mixer.d_inner  # dt_proj always has one
        case _:
            return sum(outs) * mixer.bias


def convolved(mixer: Mixer) -> int:
    """Channels that pass through the convolution."""
    match mixer:
        case Attention():
            return (mixer.n_heads + 2 * mixer.n_kv_heads) * mixer.head_dim if mixer.d_conv else 0
        case Mamba1():
            return mixer.d_inner
        case Mamba2():
            return mixer.d_inner + 2 * mixer.n_groups * mixer.d_state
        case DiscreteMamba2():
            return mixer.d_inner + 2 * mixer.n_qk_heads * mixer.d_state
        case _:
            return 0


def _mixer(mixer: Mixer, width: int) -> int:
    total = sum(i * o for i, o in _matrices(mixer, width)) + _biases(mixer, width)
    if channels := convolved(mixer):
        total += channels * (mixer.d_conv + getattr(mixer, "conv_bias", True))
    match mixer:
        case Telescoping():
            total += (mixer.head_dim + mixer.v_head_dim) * mixer.entry_norm
        case Mamba1():
            total += mixer.d_inner * (mixer.d_state + 1)
        case Mamba2():
            total += 2 * mixer.n_heads + (mixer.d_inner if mixer.d_per_channel else mixer.n_heads)
            total += mixer.d_inner if mixer.norm else 0
        case DiscreteMamba2():
            total += mixer.n_v_heads + (0 if mixer.bias else mixer.d_inner)
    return total


def _state(mixer: Mixer, room: int, dtype_bytes: int) -> int:
    tail = convolved(mixer) * (mixer.d_conv - 1) * dtype_bytes if convolved(mixer) else 0
    match mixer:
        case Attention():
            slots = mixer.window or room
            return tail + 2 * slots * mixer.n_kv_heads * mixer.head_dim * dtype_bytes + 2 * POSITION
        case Telescoping():
            numbers = mixer.head_dim + mixer.v_head_dim + (2 if mixer.merge == "l2" else 1)
            return mixer.slots * mixer.n_kv_heads * numbers * FLOAT32 + 2 * POSITION
        case Mamba1() | Mamba2() | DiscreteMamba2():
            return tail + mixer.d_inner * mixer.d_state * FLOAT32
        case _:
            return 0
