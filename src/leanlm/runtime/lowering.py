"""A LanguageModel as an array of fused steps over fixed buffers: what `native` runs.

Every activation is float32. Buffers hold `rows` rows (texts times tokens of a call) and are shared by all sublayers.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from leanlm.model import rotary
from leanlm.model.attention import Attention
from leanlm.model.conv import CausalConv
from leanlm.model.discrete_mamba2 import DiscreteMamba2
from leanlm.model.language_model import LanguageModel
from leanlm.model.linear import Linear, Matrix
from leanlm.model.mamba1 import Mamba1
from leanlm.model.mamba2 import Mamba2
from leanlm.model.mlp import MLP, GatedMLP
from leanlm.model.norm import Norm
from leanlm.model.state import State
from leanlm.model.telescoping import Telescoping
from leanlm.ops.native import INT8, MEMORY_DTYPES, Product, Weight, weight_of
from leanlm.runtime import steps
from leanlm.runtime.steps import Rows, Step, step

UNBOUNDED = float("inf")


class Columns:
    """Columns [start, start + width) of a buffer [rows, stride] of float32."""

    def __init__(self, buffer: Tensor, start: int = 0, width: int | None = None):
        self.buffer, self.start = buffer, start
        self.width = buffer.shape[1] - start if width is None else width

    def split(self, widths: list[int]) -> list["Columns"]:
        parts, at = [], self.start
        for width in widths:
            parts.append(Columns(self.buffer, at, width))
            at += width
        return parts

    @property
    def rows(self) -> Rows:
        return Rows(self.buffer.data_ptr() + 4 * self.start, self.buffer.shape[1])


class Program:
    """The steps of a model for calls of up to `rows` rows, with everything they point to.

    `memories` names the tensors of a state that the steps use, (sublayer, name) each, in the order of their slots.
    """

    def __init__(
        self, module: LanguageModel, rows: int, state_dtype: dict[tuple[int, str], torch.dtype], precision: int = INT8
    ):
        self.rows, self.precision, self.dtypes = rows, precision, state_dtype
        self.memories: list[tuple[int, str]] = []
        self.kept: list[Tensor | Weight] = []
        self.spare: dict[str, Tensor] = {}
        self.steps: list[Step] = []
        self._lower(module)
        self.array = steps.array(self.steps)
        self.attending = [one for one in self.array if one.op == steps.ATTEND]

    def bind(self, state: State) -> ctypes.Array:
        """The table of the state's tensors for a run; caches may have another capacity than in the last one."""
        memories = state.memories
        for attending in self.attending:
            index, name = self.memories[attending.attend.k_slot]
            attending.attend.slots = memories[index][name].shape[1]
        return (ctypes.c_void_p * len(self.memories))(*(memories[index][name].data_ptr() for index, name in self.memories))

    def _lower(self, module: LanguageModel) -> None:
        width = module.config.d_model
        self.x, self.h = self.buffer("x", width), self.buffer("h", width)
        self.add(steps.EMBED, weight=self.weight(module.embedding), y=self.x.rows)
        for index, sublayer in enumerate(module.sublayers()):
            self.index = index
            self.norm(sublayer.norm)
            LOWER[type(sublayer.mixer)](self, sublayer.mixer)
        self.norm(module.norm)
        head = module.embedding if module.head is None else module.head
        bias = None if module.head is None else module.head.bias
        self.add(
            steps.HEAD,
            weight=self.weight(head),
            x=self.h.rows,
            bias=self.floats(bias),
            precision=self.precision,
        )

    def add(self, op: int, **fields) -> None:
        self.steps.append(step(op, **fields))

    def buffer(self, name: str, width: int) -> Columns:
        """A buffer by role, shared by all sublayers that use the role; the first `width` of its columns."""
        held = self.spare.get(name)
        if held is None or held.shape[1] < width:
            # A wider one replaces it; steps made before keep pointing to the old one, which is kept too.
            held = self.spare[name] = torch.zeros(self.rows, width)
            self.kept.append(held)
        return Columns(held, 0, width)

    def floats(self, tensor: Tensor | None) -> int | None:
        """The address of a float32 copy that lives as long as the program; None for None."""
        if tensor is None:
            return None
        copy = tensor.detach().float().contiguous().clone()
        self.kept.append(copy)
        return copy.data_ptr()

    def weight(self, matrix: Matrix) -> Weight:
        made = weight_of(matrix.weight)
        self.kept.append(made)  # what it points into lives as long
        return made

    def slot(self, name: str) -> int:
        """The slot of a memory of the sublayer at hand."""
        self.memories.append((self.index, name))
        return len(self.memories) - 1

    def slot_if_held(self, name: str) -> int:
        """The slot, or -1 where the states have no such memory."""
        return self.slot(name) if (self.index, name) in self.dtypes else -1

    def dtype(self, name: str) -> int:
        return MEMORY_DTYPES[self.dtypes[self.index, name]]

    def norm(self, norm: Norm) -> None:
        weight, bias = self.floats(norm.weight), self.floats(norm.bias)
        self.add(steps.NORM, x=self.x.rows, y=self.h.rows, D=self.x.width, weight=weight, bias=bias, eps=norm.config.eps)

    def linears(self, x: Columns, *pairs: tuple[Linear, Columns], bias: bool = True, accumulate: bool = False) -> None:
        """Products of the same activations, each into its columns; `accumulate`: added to what stands there."""
        products = (Product * len(pairs))()
        for product, (linear, y) in zip(products, pairs):
            product.weight, product.bias = self.weight(linear), self.floats(linear.bias) if bias else None
            product.y, product.y_stride = y.rows.data, y.rows.stride
            product.accumulate = accumulate
        self.kept.append(products)
        self.add(steps.MATMUL, products=products, count=len(pairs), x=x.rows, precision=self.precision)

    def linear(self, linear: Linear, x: Columns, y: Columns, bias: bool = True) -> None:
        self.linears(x, (linear, y), bias=bias)

    def into_stream(self, linear: Linear, x: Columns) -> None:
        """The product added to the residual stream."""
        self.linears(x, (linear, self.x), accumulate=True)

    def activate(self, kind: int, x: Columns, y: Columns, z: Columns | None = None, bias: Tensor | None = None) -> None:
        z = z.rows if z else Rows()
        self.add(steps.ACTIVATE, x=x.rows, z=z, y=y.rows, D=x.width, bias=self.floats(bias), kind=kind)

    def conv(self, conv: CausalConv, x: Columns) -> None:
        taps = conv.weight.shape[-1]
        self.add(
            steps.CONV,
            x=x.rows,
            C=x.width,
            weight=self.floats(conv.weight[:, 0].t()),
            bias=self.floats(conv.bias),
            K=taps,
            slot=self.slot("conv"),
            dtype=self.dtype("conv"),
            silu=conv.activation == "silu",
        )

    def ssd(self, xBC: Columns, a: Columns, y: Columns, D: Tensor, sizes: tuple[int, int, int], **more) -> None:
        """The scan of x | B | C into y, with the decays that `a` gives and the skip D; sizes: heads, groups, state width."""
        H, G, N = sizes
        x, B, C = xBC.split([y.width, G * N, G * N])
        given = {"x": x.rows, "B": B.rows, "C": C.rows, "a": a.rows, "y": y.rows, "D": self.floats(D)}
        memory = {"slot": self.slot("ssm"), "dtype": self.dtype("ssm")}
        self.add(steps.SSD, **given, H=H, P=y.width // H, G=G, N=N, **memory, **more)


def mlp(program: Program, mixer: MLP) -> None:
    hidden = program.buffer("wide", mixer.in_proj.out_features)
    program.linear(mixer.in_proj, program.h, hidden)
    program.activate(steps.GELU if mixer.config.activation == "gelu" else steps.SILU, hidden, hidden)
    program.into_stream(mixer.out_proj, hidden)


def gated_mlp(program: Program, mixer: GatedMLP) -> None:
    gate, up = program.buffer("wide", mixer.gate_proj.out_features), program.buffer("inner", mixer.up_proj.out_features)
    program.linears(program.h, (mixer.gate_proj, gate), (mixer.up_proj, up))
    program.activate(steps.SILU_MUL, gate, gate, up)
    program.into_stream(mixer.down_proj, gate)


def mamba1(program: Program, mixer: Mamba1) -> None:
    cfg = mixer.config
    x, z = program.buffer("wide", 2 * cfg.d_inner).split([cfg.d_inner] * 2)
    program.linear(mixer.in_proj, program.h, program.buffer("wide", 2 * cfg.d_inner))
    program.conv(mixer.conv, x)
    small = program.buffer("small", cfg.dt_rank + 2 * cfg.d_state)
    program.linear(mixer.x_proj, x, small)
    dt, B, C = small.split([cfg.dt_rank, cfg.d_state, cfg.d_state])
    a, y = program.buffer("dt", cfg.d_inner), program.buffer("inner", cfg.d_inner)
    program.linear(mixer.dt_proj, dt, a, bias=False)
    program.add(
        steps.SCAN,
        x=x.rows,
        a=a.rows,
        B=B.rows,
        C=C.rows,
        z=z.rows,
        y=y.rows,
        A=program.floats(-torch.exp(mixer.A_log.detach().float())),
        dt_bias=program.floats(mixer.dt_proj.bias),
        D=program.floats(mixer.D),
        I=cfg.d_inner,
        N=cfg.d_state,
        slot=program.slot("ssm"),
        dtype=program.dtype("ssm"),
    )
    program.into_stream(mixer.out_proj, y)


def mamba2(program: Program, mixer: Mamba2) -> None:
    cfg = mixer.config
    projected = program.buffer("wide", sum(mixer.parts))
    program.linear(mixer.in_proj, program.h, projected)
    mlp_gate, mlp_value, z, xBC, a = projected.split(mixer.parts)
    program.conv(mixer.conv, xBC)
    out = program.buffer("inner", cfg.d_mlp + cfg.d_inner)
    first, y = out.split([cfg.d_mlp, cfg.d_inner])
    program.ssd(
        xBC,
        a,
        y,
        mixer.D,
        (cfg.n_heads, cfg.n_groups, cfg.d_state),
        mode=0,
        A=program.floats(-torch.exp(mixer.A_log.detach().float())),
        dt_bias=program.floats(mixer.dt_bias),
        dt_min=cfg.dt_min,
        dt_max=UNBOUNDED if cfg.dt_max is None else cfg.dt_max,
        d_per_channel=cfg.d_per_channel,
    )
    if mixer.norm_weight is not None:
        program.add(
            steps.GATED_NORM,
            y=y.rows,
            z=z.rows,
            D=cfg.d_inner,
            weight=program.floats(mixer.norm_weight),
            eps=cfg.norm_eps,
            groups=cfg.n_groups,
            before=cfg.norm_before_gate,
        )
    else:
        program.activate(steps.MUL_SILU, y, y, z)
    if cfg.d_mlp:
        program.activate(steps.SILU_MUL, mlp_gate, first, mlp_value)
    program.into_stream(mixer.out_proj, out)


def discrete_mamba2(program: Program, mixer: DiscreteMamba2) -> None:
    cfg = mixer.config
    projected = program.buffer("wide", sum(mixer.parts))
    program.linear(mixer.in_proj, program.h, projected)
    xBC, z, a = projected.split(mixer.parts)
    program.conv(mixer.conv, xBC)
    y = program.buffer("inner", cfg.d_inner)
    program.ssd(xBC, a, y, mixer.D, (cfg.n_v_heads, cfg.n_qk_heads, cfg.d_state), mode=1)
    program.activate(steps.MUL_SILU, y, y, z, mixer.z_bias)
    program.into_stream(mixer.out_proj, y)


def rotate(program: Program, cfg, q: Columns, k: Columns, position: int, start: int = -1) -> None:
    """Queries and keys of a mixer so configured, by their positions, counted from those in slot `start` where it is given."""
    if cfg.rope is None:
        return
    freq = program.floats(rotary.frequencies(cfg.rope, torch.device("cpu")))
    for part, heads in ((q, cfg.n_heads), (k, cfg.n_kv_heads)):
        sizes = {"heads": heads, "P": cfg.head_dim, "R": cfg.rope.dim}
        program.add(steps.ROTATE, x=part.rows, freq=freq, slot=position, start_slot=start, **sizes)


def attention(program: Program, mixer: Attention) -> None:
    cfg = mixer.config
    inner, shared = cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim
    projected = program.buffer("wide", inner + 2 * shared)
    q, k, v = projected.split([inner, shared, shared])
    program.linears(program.h, (mixer.q_proj, q), (mixer.k_proj, k), (mixer.v_proj, v))
    if mixer.conv is not None:
        program.conv(mixer.conv, projected)
    position = program.slot("position")
    rotate(program, cfg, q, k, position)
    y = program.buffer("inner", inner)
    program.add(
        steps.ATTEND,
        q=q.rows,
        k=k.rows,
        v=v.rows,
        y=y.rows,
        window=cfg.window or 0,
        H=cfg.n_heads,
        Hkv=cfg.n_kv_heads,
        P=cfg.head_dim,
        dtype=program.dtype("k"),
        k_slot=program.slot("k"),
        v_slot=program.slot("v"),
        position_slot=position,
        start_slot=program.slot("start"),
        k_scale_slot=program.slot_if_held("k_scale"),
        v_scale_slot=program.slot_if_held("v_scale"),
        scale=mixer.scale,
    )
    program.into_stream(mixer.out_proj, y)


RULES = {"learned": steps.LEARNED, "self_score": steps.SELF_SCORE, "l2": steps.L2}  # how a token is weighed


def telescoping(program: Program, mixer: Telescoping) -> None:
    cfg, H, G = mixer.config, mixer.config.n_heads, mixer.config.n_kv_heads
    widths = [H * cfg.head_dim, G * cfg.head_dim, G * cfg.v_head_dim]
    q, k, v = program.buffer("wide", sum(widths)).split(widths)
    weights = program.buffer("few", G)
    products = [(mixer.q_proj, q), (mixer.k_proj, k), (mixer.v_proj or mixer.k_proj, v)]  # values may be keys not yet rotated
    program.linears(program.h, *products, *([(mixer.weight_proj, weights)] if mixer.weight_proj else []))
    position, start = program.slot("position"), program.slot("start")
    rotate(program, cfg, q, k, position, start)
    y = program.buffer("inner", H * cfg.v_head_dim)
    merges = torch.tensor(cfg.merges, dtype=torch.int32)
    program.kept.append(merges)
    how = steps.Telescoping(
        q=q.rows,
        k=k.rows,
        v=v.rows,
        y=y.rows,
        weights=weights.rows,
        merges=merges.data_ptr(),
        norm_k=program.floats(mixer.norm_k),
        norm_v=program.floats(mixer.norm_v),
        levels=len(merges),
        slots=cfg.slots,
        H=H,
        G=G,
        P=cfg.head_dim,
        Q=cfg.v_head_dim,
        rule=RULES.get(cfg.merge, steps.ALIKE),
        masked=cfg.mask_empty,
        mixed=cfg.head_mix,
        scale=mixer.scale,
        factor=mixer.reading.factor or 0,
        eps=cfg.entry_norm_eps,
        cap=cfg.softcap or 0,
    )
    held = {f"{name}_slot": program.slot(f"entry_{name}") for name in ("k", "v")}
    held |= {f"weight_{name}_slot": program.slot_if_held(f"weight_{name}") for name in ("k", "v")}
    program.add(steps.TELESCOPE, how=how, position_slot=position, start_slot=start, **held)
    program.into_stream(mixer.out_proj, y)


LOWER: dict[type, Callable[[Program, Any], None]] = {
    MLP: mlp,
    GatedMLP: gated_mlp,
    Mamba1: mamba1,
    Mamba2: mamba2,
    DiscreteMamba2: discrete_mamba2,
    Attention: attention,
    Telescoping: telescoping,
}
