"""The CPU library: found, loaded with ctypes, and called on tensors. ImportError where it was not built.

Contracts: `native/include/leanlm.h` and `leanlm.ops`. Nothing here has an autograd form. R rows (outputs)  n columns (inputs)
"""

import ctypes
import functools
import importlib.util
from ctypes import c_char_p, c_double, c_int, c_int32, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from leanlm import env
from leanlm.errors import UsageError
from leanlm.ops.packing import packed_bytes

FILE = "_native/libleanlm.so"
EXACT, INT8 = 0, 1  # precision of the activations that codes are multiplied with
_FLOAT, _GROUPED, _TERNARY = 0, 1, 2
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MEMORY_DTYPES = DTYPES | {torch.int8: 3}


class Weight(ctypes.Structure):
    """leanlm_weight; `held` keeps the tensors it points into alive."""

    _fields_ = (
        ("kind", c_int32),
        ("dtype", c_int32),
        ("rows", c_int64),
        ("columns", c_int64),
        ("data", c_void_p),
        ("row_bytes", c_int64),
        ("scales", c_void_p),
        ("zeros", c_void_p),
        ("g_idx", c_void_p),
        ("starts", c_void_p),
        ("bits", c_int32),
        ("groups", c_int32),
        ("regions", c_int32),
        ("along_rows", c_int32),
    )
    held: tuple[Tensor | None, ...]


class Product(ctypes.Structure):
    """leanlm_product: a weight, and where its product with activations goes."""

    _fields_ = (
        ("weight", Weight),
        ("y", c_void_p),
        ("y_stride", c_int64),
        ("bias", c_void_p),
        ("accumulate", c_int32),
    )


def path() -> Path:
    """Where the library lies; raises ImportError where it was not built."""
    folders = importlib.util.find_spec("leanlm").submodule_search_locations
    for folder in folders:
        if (file := Path(folder) / FILE).exists():
            return file
    raise ImportError(
        "leanlm was installed without its native library: no C++17 compiler was found then, or compiling failed "
        "(pip install --verbose says why); install it again with one"
    )


@functools.cache
def library() -> ctypes.CDLL:
    """The library, declared. Raises ImportError, or UsageError for a LEANLM_ISA or LEANLM_THREADS that cannot be."""
    try:
        lib = ctypes.CDLL(str(path()))
    except OSError as error:
        raise ImportError(f"the native library cannot be loaded: {error}") from error
    weight = ctypes.POINTER(Weight)
    declared = {
        "leanlm_version": (c_int,),
        "leanlm_isa": (c_char_p,),
        "leanlm_set_isa": (c_int, c_char_p),
        "leanlm_threads": (c_int,),
        "leanlm_set_threads": (c_int, c_int),
        "leanlm_matmul": (c_int, ctypes.POINTER(Product), c_int64, c_void_p, c_int64, c_int64, c_int32),
        "leanlm_embed": (c_int, weight, c_void_p, c_void_p, c_int64, c_int64),
        "leanlm_codes_of_trits": (None, c_void_p, c_int64, c_int64, c_void_p),
        "leanlm_read": (c_double, c_void_p, c_int64),
    }
    for name, (result, *arguments) in declared.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    isa = env.ISA.get()
    if isa and lib.leanlm_set_isa(isa.encode()):
        raise UsageError(f"LEANLM_ISA={isa}: this CPU or library does not have it; choose portable, avx2 or avx512")
    threads = env.THREADS.get()
    known = threads.isdecimal() and int(threads) <= env.MOST_THREADS
    if threads and not (known and lib.leanlm_set_threads(int(threads)) == 0):
        raise UsageError(f"LEANLM_THREADS={threads}: give a number of threads from 1 to {env.MOST_THREADS}")
    return lib


library()  # so that importing this module says whether there is one


def weight_of(weight) -> Weight:
    """A float matrix [R, n] or a `model.packed.Packed` one as the library sees it. Rows must be contiguous.

    Raises UsageError for a dtype that the library does not have.
    """
    if isinstance(weight, Tensor):
        return _float_weight(weight)
    if weight.format.kind == "ternary":
        return _ternary_weight(weight.codes, weight.shape[1], weight.scales, weight.starts, weight.along_rows)
    return _grouped_weight(weight.codes, weight.shape[1], weight.scales, weight.zeros, weight.g_idx, weight.format.bits)


def _dtype(tensor: Tensor) -> int:
    if tensor.dtype not in DTYPES or tensor.device.type != "cpu":
        raise UsageError(
            f"the native library takes float32, bfloat16 and float16 on the CPU; {tensor.dtype} on {tensor.device}"
        )
    return DTYPES[tensor.dtype]


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _float_weight(weight: Tensor) -> Weight:
    weight = weight.detach()
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    row_bytes = weight.stride(0) * weight.element_size()
    made = Weight(_FLOAT, _dtype(weight), *weight.shape, weight.data_ptr(), row_bytes)
    made.held = (weight,)
    return made


def _grouped_weight(codes, n: int, scales, zeros, g_idx, bits: int) -> Weight:
    codes, scales = codes.contiguous(), scales.contiguous()
    zeros = None if zeros is None else zeros.contiguous()
    g_idx = None if g_idx is None else g_idx.to(torch.int32).contiguous()
    pointers = (codes.data_ptr(), codes.shape[1], scales.data_ptr(), _pointer(zeros), _pointer(g_idx), None)
    made = Weight(_GROUPED, _dtype(scales), len(codes), n, *pointers, bits, scales.shape[1], 0, 0)
    made.held = (codes, scales, zeros, g_idx)
    return made


def _ternary_weight(codes, n: int, scales, starts, along_rows: bool) -> Weight:
    codes, scales, starts = codes.contiguous(), scales.contiguous(), starts.to(torch.int32).contiguous()
    pointers = (codes.data_ptr(), codes.shape[1], scales.data_ptr(), None, None, starts.data_ptr())
    made = Weight(_TERNARY, _dtype(scales), len(codes), n, *pointers, 2, 1, len(scales), along_rows)
    made.held = (codes, scales, starts)
    return made


def matmul(weight: Weight, x: Tensor, bias: Tensor | None = None, precision: int = EXACT) -> Tensor:
    """float32 x [..., n] times the weight transposed, plus bias [R]: float32 [..., R]."""
    rows = x.detach().reshape(-1, weight.columns).float()
    rows = rows if rows.stride(1) == 1 or len(rows) == 0 else rows.contiguous()
    bias = None if bias is None else bias.detach().float().contiguous()
    y = torch.empty(len(rows), weight.rows)
    product = Product(weight, y.data_ptr(), y.stride(0), _pointer(bias), 0)
    if library().leanlm_matmul(product, 1, rows.data_ptr(), rows.stride(0), len(rows), precision):
        raise UsageError(f"the native library does not take this weight ({weight.rows} x {weight.columns}, {weight.bits} bits)")
    return y.view(*x.shape[:-1], weight.rows)


def embed(table: Weight, tokens: Tensor) -> Tensor:
    """The rows `tokens` [...] of the table in float32: [..., n]. Raises UsageError for a row that it does not have."""
    tokens = tokens.long().contiguous()
    x = torch.empty(*tokens.shape, table.columns)
    if library().leanlm_embed(table, tokens.data_ptr(), x.data_ptr(), table.columns, tokens.numel()):
        raise UsageError(f"token numbers must lie between 0 and {table.rows - 1}")
    return x


def codes_of_trits(packed: Tensor, n: int) -> Tensor:
    """As `packing.codes_of_trits`."""
    packed, codes = packed.contiguous(), torch.empty(len(packed), packed_bytes(n, 2), dtype=torch.uint8)
    library().leanlm_codes_of_trits(packed.data_ptr(), len(packed), n, codes.data_ptr())
    return codes


def linear(x, weight, bias=None):
    return matmul(_float_weight(weight), x, bias).to(x.dtype)


def grouped_linear(x, codes, scales, zeros, g_idx, bits, bias=None):
    return matmul(_grouped_weight(codes, x.shape[-1], scales, zeros, g_idx, bits), x, bias).to(x.dtype)


def ternary_linear(x, codes, scales, starts, along_rows, bias=None):
    return matmul(_ternary_weight(codes, x.shape[-1], scales, starts, along_rows), x, bias).to(x.dtype)
