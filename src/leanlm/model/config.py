"""What a model is, as frozen data: a list of layers, each a list of residual sublayers. Loads no torch.

Every mixer has its own config class with its `kind`; `ModelConfig` holds the layers and what surrounds them.
`to_dict` / `from_dict` turn any of them into plain JSON data and back; unknown or missing fields are errors.
"""

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass
from typing import ClassVar, Literal

from leanlm.errors import CheckpointError
from leanlm.slots import Table, wrong


def _positive(config, *names: str) -> None:
    """Refuse sizes below 1."""
    for name in names:
        if getattr(config, name) < 1:
            where = f"{getattr(config, 'kind', 'model')}.{name}"
            raise CheckpointError(f"{where}: {getattr(config, name)} is not a size; it must be at least 1")


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama-3's stretching of rotary frequencies (transformers' rope_type "llama3")."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True)
class Rope:
    """Rotary positions, half-split (NeoX) layout, over the first `dim` channels of each head."""

    dim: int
    theta: float = 10000.0
    scaling: Llama3Scaling | None = None


@dataclass(frozen=True)
class Attention:
    """Causal softmax attention; `window` w lets query i see keys i-w+1 .. i. `d_conv` > 0 convolves q|k|v first."""

    kind: ClassVar[str] = "attention"
    n_heads: int
    n_kv_heads: int
    head_dim: int
    window: int | None = None
    rope: Rope | None = None
    scale: float | None = None  # None: head_dim ** -0.5
    d_conv: int = 0
    qkv_bias: bool = False
    out_bias: bool = False

    def __post_init__(self):
        _positive(self, "n_heads", "n_kv_heads", "head_dim")
        if self.n_heads % self.n_kv_heads:
            raise CheckpointError(f"attention: {self.n_heads} heads cannot share {self.n_kv_heads} key/value heads evenly")
        if self.window is not None and self.window < 1:
            raise CheckpointError(f"attention: a window of {self.window} sees nothing; it must be at least 1")
        if self.rope and (self.rope.dim > self.head_dim or self.rope.dim % 2):
            raise CheckpointError(f"attention: cannot rotate {self.rope.dim} of {self.head_dim} head channels")


@dataclass(frozen=True)
class Telescoping:
    """Attention over a cache of `slots` slots, in which old tokens are merged into ever longer means: slot merges[i] takes two
    entries of level i + 1, each of 2^i tokens (IBM's Avengers).

    `merge` weighs what is merged: by a learned projection, by a token's scores with its own queries, by the square of its norm
    ("l2", keys and values apart), all alike ("mean"), or not at all ("sqrt2": the sum over the square root of two). Entries are
    looked at through RMS norms (`entry_norm`). Empty slots are keys and values of zeros, or masked (`mask_empty`). With
    `softcap` c scores s become c tanh(s / c). `head_mix`: head h reads value head h mod n_kv_heads. `value_is_key`: values
    are the keys before they are rotated.
    """

    kind: ClassVar[str] = "telescoping"
    n_heads: int
    n_kv_heads: int
    head_dim: int
    slots: int
    merges: tuple[int, ...]
    merge: Literal["learned", "self_score", "l2", "mean", "sqrt2"] = "learned"
    v_head_dim: int = 0  # 0: head_dim
    entry_norm: bool = True
    entry_norm_eps: float = 1e-6
    mask_empty: bool = False
    softcap: float | None = None
    head_mix: bool = False
    value_is_key: bool = False
    rope: Rope | None = None
    scale: float | None = None  # None: head_dim ** -0.5
    qkv_bias: bool = False
    out_bias: bool = False

    def __post_init__(self):
        if not self.v_head_dim:
            object.__setattr__(self, "v_head_dim", self.head_dim)
        _positive(self, "n_heads", "n_kv_heads", "head_dim", "v_head_dim", "slots")
        if self.n_heads % self.n_kv_heads:
            raise CheckpointError(f"telescoping: {self.n_heads} heads cannot share {self.n_kv_heads} key/value heads evenly")
        if self.rope and (self.rope.dim > self.head_dim or self.rope.dim % 2):
            raise CheckpointError(f"telescoping: cannot rotate {self.rope.dim} of {self.head_dim} head channels")
        if self.value_is_key and self.v_head_dim != self.head_dim:
            raise CheckpointError(f"telescoping: values that are keys have their width, {self.head_dim}, not {self.v_head_dim}")
        if self.softcap is not None and not 0 < self.softcap < math.inf:
            raise CheckpointError(f"telescoping.softcap: {self.softcap} caps nothing; it must be a number above 0")
        if not 0 <= self.entry_norm_eps < math.inf:
            raise CheckpointError(f"telescoping.entry_norm_eps: {self.entry_norm_eps}; it must be a number from 0 on")
        if reason := wrong(self.table):
            raise CheckpointError(f"telescoping: {reason}")

    @classmethod
    def of(cls, attention: Attention, path: str = "telescoping", **settings) -> "Telescoping":
        """The same heads, positions, scale and biases with such a cache in place of the window. Raises CheckpointError, naming
        what is wrong below `path`."""
        if attention.d_conv:
            raise CheckpointError(f"{path}: there is none for attention with a convolution")
        ours = {field.name for field in dataclasses.fields(cls)}
        shared = {name: value for name, value in to_dict(attention).items() if name in ours}
        return from_dict(cls, {**shared, **{name: _plain(value) for name, value in settings.items()}}, path)

    @property
    def table(self) -> Table:
        return Table(self.slots, tuple(self.merges))


@dataclass(frozen=True)
class MLP:
    """out(activation(in(x)))."""

    kind: ClassVar[str] = "mlp"
    d_ff: int
    activation: Literal["gelu", "silu"] = "gelu"
    bias: bool = False

    def __post_init__(self):
        _positive(self, "d_ff")


@dataclass(frozen=True)
class GatedMLP:
    """down(silu(gate(x)) * up(x))."""

    kind: ClassVar[str] = "gated_mlp"
    d_ff: int
    bias: bool = False

    def __post_init__(self):
        _positive(self, "d_ff")


@dataclass(frozen=True)
class Mamba1:
    """Selective scan with one state vector per channel (Gu & Dao 2023, arXiv 2312.00752)."""

    kind: ClassVar[str] = "mamba1"
    d_inner: int
    d_state: int = 16
    d_conv: int = 4
    dt_rank: int = 1
    bias: bool = False
    conv_bias: bool = True

    def __post_init__(self):
        _positive(self, "d_inner", "d_state", "d_conv", "dt_rank")


@dataclass(frozen=True)
class Mamba2:
    """State-space duality with one decay per head (Dao & Gu 2024, arXiv 2405.21060).

    `d_inner` counts the channels of the scan, `d_mlp` those of the extra gated part beside it (0: none).
    """

    kind: ClassVar[str] = "mamba2"
    d_inner: int
    head_dim: int
    d_state: int = 128
    n_groups: int = 1
    d_conv: int = 4
    d_mlp: int = 0
    chunk: int = 256
    norm: bool = True  # gated RMS norm per group; False: only the gate
    norm_before_gate: bool = False
    norm_eps: float = 1e-5
    dt_min: float = 0.0  # dt is clamped to dt_min .. dt_max after the softplus; dt_max None: unbounded
    dt_max: float | None = None
    d_per_channel: bool = False
    bias: bool = False
    conv_bias: bool = True

    def __post_init__(self):
        _positive(self, "d_inner", "head_dim", "d_state", "n_groups", "d_conv", "chunk")
        if self.d_inner % self.head_dim:
            raise CheckpointError(f"mamba2: {self.d_inner} channels do not divide into heads of {self.head_dim}")
        if self.n_heads % self.n_groups:
            raise CheckpointError(f"mamba2: {self.n_heads} heads do not divide into {self.n_groups} groups")

    @property
    def n_heads(self) -> int:
        return self.d_inner // self.head_dim


@dataclass(frozen=True)
class DiscreteMamba2:
    """Llamba's mixer: decay sigmoid(-A_log) from the input, input not scaled by dt, gate silu(z + z_bias), no norm."""

    kind: ClassVar[str] = "discrete_mamba2"
    d_inner: int
    n_v_heads: int
    n_qk_heads: int
    d_state: int = 64
    d_conv: int = 4
    chunk: int = 128
    conv_activation: Literal["identity", "silu"] = "identity"
    bias: bool = False  # True: in_proj and out_proj have a bias and there is no separate z_bias
    conv_bias: bool = True

    def __post_init__(self):
        _positive(self, "d_inner", "n_v_heads", "n_qk_heads", "d_state", "d_conv", "chunk")
        if self.d_inner % self.n_v_heads:
            raise CheckpointError(f"discrete_mamba2: {self.d_inner} channels do not divide into {self.n_v_heads} heads")
        if self.n_v_heads % self.n_qk_heads:
            raise CheckpointError(f"discrete_mamba2: {self.n_v_heads} heads cannot share {self.n_qk_heads} qk heads evenly")

    @property
    def head_dim(self) -> int:
        return self.d_inner // self.n_v_heads


Mixer = Attention | Telescoping | MLP | GatedMLP | Mamba1 | Mamba2 | DiscreteMamba2
MIXERS: dict[str, type] = {cls.kind: cls for cls in typing.get_args(Mixer)}


@dataclass(frozen=True)
class Norm:
    """RMS norm or layer norm (weight and bias). `round_first` casts to the model dtype before the weight multiplies,
    as the Llama lineage does; otherwise one rounding comes at the end. The two differ only below float32."""

    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-5
    round_first: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """Embedding, then x + mixer(norm(x)) for every sublayer of every layer, then final norm and head.

    vocab_size counts the tokens that may be produced; padded_vocab_size the rows of embedding and head.
    residual_in_fp32 keeps the stream x in float32 across the layers; otherwise it has the model's dtype.
    context_length is what the model was trained on, None if unknown.
    """

    d_model: int
    vocab_size: int
    layers: tuple[tuple[Mixer, ...], ...]
    padded_vocab_size: int = 0  # 0: vocab_size
    norm: Norm = Norm()
    final_norm: Norm | None = None  # None: as norm
    residual_in_fp32: bool = False
    tied: bool = True
    head_bias: bool = False
    context_length: int | None = None
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None

    def __post_init__(self):
        if not self.padded_vocab_size:
            object.__setattr__(self, "padded_vocab_size", self.vocab_size)
        if self.final_norm is None:
            object.__setattr__(self, "final_norm", self.norm)
        _positive(self, "d_model", "vocab_size")
        if self.padded_vocab_size < self.vocab_size:
            raise CheckpointError(f"model: {self.vocab_size} tokens do not fit {self.padded_vocab_size} embedding rows")
        if not self.layers or not all(self.layers):
            raise CheckpointError("a model needs at least one layer, and every layer at least one sublayer")

    @property
    def sublayers(self) -> tuple[Mixer, ...]:
        return tuple(mixer for layer in self.layers for mixer in layer)

    @property
    def bounded(self) -> bool:
        """Whether the state has the same size however many tokens were read."""
        return not any(isinstance(m, Attention) and m.window is None for m in self.sublayers)

    def to_dict(self) -> dict:
        return to_dict(self)

    @classmethod
    def from_dict(cls, raw: dict) -> "ModelConfig":
        return from_dict(cls, raw, "model")


def to_dict(config) -> dict:
    """Plain JSON data of a config dataclass; mixers carry their `kind`."""
    raw = {"kind": config.kind} if hasattr(config, "kind") and type(config) in MIXERS.values() else {}
    for field in dataclasses.fields(config):
        raw[field.name] = _plain(getattr(config, field.name))
    return raw


def _plain(value):
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def from_dict(cls: type, raw: dict, path: str):
    """The dataclass `cls` from plain data; raises CheckpointError with the path of an unknown, missing or mistyped field."""
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: expected a table of settings, got {type(raw).__name__}")
    known = {field.name: field for field in dataclasses.fields(cls)}
    for key in raw.keys() - known.keys():
        near = difflib.get_close_matches(key, known, 1)
        raise CheckpointError(f"{path}.{key}: unknown setting" + (f"; did you mean {near[0]!r}?" if near else ""))
    hints = typing.get_type_hints(cls)
    values = {key: _typed(hints[key], value, f"{path}.{key}") for key, value in raw.items()}
    for name, field in known.items():
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise CheckpointError(f"{path}.{name}: missing")
    return cls(**values)


def _typed(hint, value, path: str):
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint == Mixer:
        kind = value.get("kind") if isinstance(value, dict) else None
        if kind not in MIXERS:
            raise CheckpointError(f"{path}.kind: {kind!r} is none of {', '.join(MIXERS)}")
        return from_dict(MIXERS[kind], {k: v for k, v in value.items() if k != "kind"}, path)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _typed(next(arg for arg in args if arg is not type(None)), value, path)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise CheckpointError(f"{path}: expected a list, got {value!r}")
        return tuple(_typed(args[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin is Literal:
        if value not in args:
            raise CheckpointError(f"{path}: {value!r} is none of {', '.join(map(repr, args))}")
        return value
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise CheckpointError(f"{path}: expected {hint.__name__}, got {value!r}")
    return value
