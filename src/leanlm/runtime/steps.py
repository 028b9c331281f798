"""The steps of a program as C knows them: the structures of native/include/leanlm.h, by ctypes."""

import ctypes
from ctypes import POINTER, Structure, Union, c_float, c_int32, c_int64, c_void_p

from leanlm.ops.native import Product, Weight

EMBED, NORM, MATMUL, ACTIVATE, GATED_NORM, CONV, SSD, SCAN, ROTATE, ATTEND, TELESCOPE, HEAD = range(12)
GELU, SILU, SILU_MUL, MUL_SILU = range(4)
LEARNED, SELF_SCORE, L2, ALIKE = range(4)


class Rows(Structure):
    """A buffer of activations, or columns of one."""

    _fields_ = [("data", c_void_p), ("stride", c_int64)]


class Embed(Structure):
    _fields_ = [("weight", Weight), ("y", Rows)]


class Norm(Structure):
    _fields_ = [("x", Rows), ("y", Rows), ("D", c_int64), ("weight", c_void_p), ("bias", c_void_p), ("eps", c_float)]


class Matmul(Structure):
    _fields_ = [("products", POINTER(Product)), ("count", c_int64), ("x", Rows), ("precision", c_int32)]


class Head(Structure):
    _fields_ = [("weight", Weight), ("x", Rows), ("bias", c_void_p), ("precision", c_int32)]


class Activate(Structure):
    _fields_ = [("x", Rows), ("z", Rows), ("y", Rows), ("D", c_int64), ("bias", c_void_p), ("kind", c_int32)]


class GatedNorm(Structure):
    _fields_ = [
        ("y", Rows),
        ("z", Rows),
        ("D", c_int64),
        ("weight", c_void_p),
        ("eps", c_float),
        ("groups", c_int32),
        ("before", c_int32),
    ]


class Conv(Structure):
    _fields_ = [
        ("x", Rows),
        ("C", c_int64),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("K", c_int32),
        ("slot", c_int32),
        ("dtype", c_int32),
        ("silu", c_int32),
    ]


class Ssd(Structure):
    _fields_ = [
        *((name, Rows) for name in ("x", "B", "C", "a", "y")),
        *((name, c_void_p) for name in ("A", "dt_bias", "D")),
        *((name, c_float) for name in ("dt_min", "dt_max")),
        *((name, c_int32) for name in ("H", "P", "G", "N", "mode", "d_per_channel", "slot", "dtype")),
    ]


class Scan(Structure):
    _fields_ = [
        *((name, Rows) for name in ("x", "a", "B", "C", "z", "y")),
        *((name, c_void_p) for name in ("A", "dt_bias", "D")),
        ("I", c_int64),
        *((name, c_int32) for name in ("N", "slot", "dtype")),
    ]


class Rotate(Structure):
    _fields_ = [("x", Rows), ("freq", c_void_p), *((name, c_int32) for name in ("heads", "P", "R", "slot", "start_slot"))]


class Attend(Structure):
    _fields_ = [
        *((name, Rows) for name in ("q", "k", "v", "y")),
        ("slots", c_int64),
        ("window", c_int64),
        *((name, c_int32) for name in ("H", "Hkv", "P", "dtype", "k_slot", "v_slot", "position_slot", "start_slot")),
        *((name, c_int32) for name in ("k_scale_slot", "v_scale_slot")),
        ("scale", c_float),
    ]


class Telescoping(Structure):
    _fields_ = [
        *((name, Rows) for name in ("q", "k", "v", "y", "weights")),
        *((name, c_void_p) for name in ("merges", "norm_k", "norm_v")),
        *((name, c_int32) for name in ("levels", "slots", "H", "G", "P", "Q", "rule", "masked", "mixed")),
        *((name, c_float) for name in ("scale", "factor", "eps", "cap")),
    ]


class Telescope(Structure):
    _fields_ = [
        ("how", Telescoping),
        *((name, c_int32) for name in ("k_slot", "v_slot", "weight_k_slot", "weight_v_slot", "position_slot", "start_slot")),
    ]


class _Any(Union):
    _fields_ = [
        ("embed", Embed),
        ("norm", Norm),
        ("matmul", Matmul),
        ("activate", Activate),
        ("gated_norm", GatedNorm),
        ("conv", Conv),
        ("ssd", Ssd),
        ("scan", Scan),
        ("rotate", Rotate),
        ("attend", Attend),
        ("telescope", Telescope),
        ("head", Head),
    ]


class Step(Structure):
    """One of the above, and which."""

    _anonymous_ = ("any",)
    _fields_ = [("op", c_int32), ("any", _Any)]


FIELD = {
    EMBED: "embed",
    NORM: "norm",
    MATMUL: "matmul",
    ACTIVATE: "activate",
    GATED_NORM: "gated_norm",
    CONV: "conv",
    SSD: "ssd",
    SCAN: "scan",
    ROTATE: "rotate",
    ATTEND: "attend",
    TELESCOPE: "telescope",
    HEAD: "head",
}


def step(op: int, **fields) -> Step:
    made = Step(op=op)
    target = getattr(made, FIELD[op])
    for name, value in fields.items():
        setattr(target, name, value)
    return made


def array(steps: list[Step]) -> ctypes.Array:
    """The steps side by side, as C wants them."""
    return (Step * len(steps))(*steps)


def run(library: ctypes.CDLL):
    """The C function `leanlm_run`, declared."""
    function = library.leanlm_run
    function.argtypes = [
        POINTER(Step),
        c_int64,
        c_void_p,
        c_int64,
        c_int64,
        POINTER(c_void_p),
        c_void_p,
        c_void_p,
        c_int64,
        c_int32,
    ]
    function.restype = c_int32
    return function
