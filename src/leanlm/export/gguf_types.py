"""The number formats of GGUF tensors: how many weights a block holds, and where its bits lie.

Layouts: ggml-org/ggml, src/ggml-common.h and the dequantisers of src/ggml-quants.c. A quantised block holds one half-precision
scale d; a weight is d times its level, a small signed integer.

N blocks  K weights of a block  n weights of a row
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from leanlm.ops.packing import pack, unpack

TRIT_WEIGHTS = (81, 27, 9, 3, 1)  # of five base-3 digits, the first most significant


@dataclass(frozen=True)
class Float:
    """A type whose tensors hold plain numbers."""

    name: str
    code: int  # ggml_type
    file_type: int  # llama_ftype of a file that holds mostly this
    dtype: torch.dtype
    block: int = 1

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize

    def encode(self, values: Tensor) -> Tensor:
        """Values [..., n] in the type's precision, as bytes [..., n * nbytes]."""
        return values.to(self.dtype).contiguous().view(torch.uint8)

    def decode(self, data: Tensor) -> Tensor:
        """The inverse of `encode`, in float32."""
        return data.view(self.dtype).float()


@dataclass(frozen=True)
class Quantised:
    """A type of blocks: `block` weights in `nbytes` bytes, levels `low` to `high`.

    `encode(levels, scales)`: levels [N, K] integers and scales [N] float16 to bytes uint8 [N, nbytes]. `decode(blocks)`: bytes
    [N, nbytes] to weights float32 [N, K].
    """

    name: str
    code: int
    file_type: int
    block: int
    nbytes: int
    low: int
    high: int
    encode: Callable[[Tensor, Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


def row_bytes(type: Float | Quantised, n: int) -> int:
    """Bytes of a row of n weights, n a multiple of the block."""
    return n // type.block * type.nbytes


def _scale_bytes(scales: Tensor) -> Tensor:
    return scales.half()[:, None].contiguous().view(torch.uint8)


def _scale(two_bytes: Tensor) -> Tensor:
    """[N, 2] bytes of a half-precision number -> float32 [N, 1]."""
    return two_bytes.contiguous().view(torch.float16).float()


def _encode_q8_0(levels: Tensor, scales: Tensor) -> Tensor:
    return torch.cat([_scale_bytes(scales), levels.to(torch.int8).view(torch.uint8)], 1)


def _decode_q8_0(blocks: Tensor) -> Tensor:
    return _scale(blocks[:, :2]) * blocks[:, 2:].contiguous().view(torch.int8).float()


def _encode_q4_0(levels: Tensor, scales: Tensor) -> Tensor:
    """Byte j: weight j in the low half, weight j + 16 in the high one."""
    low, high = (levels + 8).to(torch.uint8).chunk(2, 1)
    return torch.cat([_scale_bytes(scales), low | high << 4], 1)


def _decode_q4_0(blocks: Tensor) -> Tensor:
    codes = torch.cat([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], 1)
    return _scale(blocks[:, :2]) * (codes.float() - 8)


def encode_q6_k(levels: Tensor, scales: Tensor, sub_scales: Tensor | None = None) -> Tensor:
    """Four bits of each code, then two, sixteen sub-scales (int8 [N, 16], here 1 where not given), and the scale.

    In each half of 128 weights, byte l of 64 holds weights l and l + 64, byte l of 32 the top bits of l, l + 32, l + 64
    and l + 96.
    """
    codes = (levels + 32).to(torch.uint8).view(-1, 2, 4, 32)
    low, top = codes & 15, codes >> 4
    four = low[:, :, :2] | low[:, :, 2:] << 4
    two = top[:, :, 0] | top[:, :, 1] << 2 | top[:, :, 2] << 4 | top[:, :, 3] << 6
    if sub_scales is None:
        sub_scales = torch.ones(len(levels), 16, dtype=torch.int8)
    return torch.cat([four.flatten(1), two.flatten(1), sub_scales.view(torch.uint8), _scale_bytes(scales)], 1)


def _decode_q6_k(blocks: Tensor) -> Tensor:
    four, two, sub_scales, d = blocks.split([128, 64, 16, 2], 1)
    four, two = four.reshape(-1, 2, 2, 32), two.reshape(-1, 2, 1, 32)
    low = torch.cat([four & 15, four >> 4], 2)
    top = torch.cat([two >> shift & 3 for shift in (0, 2, 4, 6)], 2)
    levels = (low | top << 4).float().view(-1, 16, 16) - 32
    each = _scale(d) * sub_scales.contiguous().view(torch.int8).float()
    return (each[..., None] * levels).flatten(1)


def _encode_q2_0(levels: Tensor, scales: Tensor) -> Tensor:
    return torch.cat([_scale_bytes(scales), pack((levels + 1).to(torch.uint8), 2)], 1)


def _decode_q2_0(blocks: Tensor) -> Tensor:
    return _scale(blocks[:, :2]) * (unpack(blocks[:, 2:].contiguous(), 2, 64).float() - 1)


def _encode_tq2_0(levels: Tensor, scales: Tensor) -> Tensor:
    """In each half of 128 weights, byte m holds weights m, m + 32, m + 64 and m + 96, lowest bits first."""
    codes = (levels + 1).to(torch.uint8).view(-1, 2, 4, 32)
    packed = codes[:, :, 0] | codes[:, :, 1] << 2 | codes[:, :, 2] << 4 | codes[:, :, 3] << 6
    return torch.cat([packed.flatten(1), _scale_bytes(scales)], 1)


def _decode_tq2_0(blocks: Tensor) -> Tensor:
    packed = blocks[:, :64].reshape(-1, 2, 1, 32)
    codes = torch.cat([packed >> shift & 3 for shift in (0, 2, 4, 6)], 2)
    return _scale(blocks[:, 64:]) * (codes.flatten(1).float() - 1)


# Of a TQ1_0 block: (first weight, bytes, digits in a byte); digit k of byte m is weight first + bytes * k + m.
TRIT_BANDS = ((0, 32, 5), (160, 16, 5), (240, 4, 4))


def _encode_tq1_0(levels: Tensor, scales: Tensor) -> Tensor:
    """Five trits in a byte as in `packing.pack_trits`, the last four bytes with four, but in another order."""
    digits = (levels + 1).int()
    parts = []
    for first, width, count in TRIT_BANDS:
        band = digits[:, first : first + width * count].view(-1, count, width)
        value = (band * torch.tensor(TRIT_WEIGHTS[:count], dtype=torch.int32)[:, None]).sum(1)
        parts.append(((256 * value + 242) // 243).to(torch.uint8))
    return torch.cat([*parts, _scale_bytes(scales)], 1)


def _decode_tq1_0(blocks: Tensor) -> Tensor:
    parts, at = [], 0
    for _, width, count in TRIT_BANDS:
        rest = blocks[:, at : at + width].int()
        at += width
        for _ in range(count):
            rest = rest * 3
            parts.append((rest >> 8) - 1)
            rest = rest & 255
    return _scale(blocks[:, 52:]) * torch.cat(parts, 1).float()


FLOATS = (
    Float("F32", 0, 0, torch.float32),
    Float("F16", 1, 1, torch.float16),
    Float("BF16", 30, 32, torch.bfloat16),
)
# From the fewest bytes a weight to the most.
QUANTISED = (
    Quantised("TQ1_0", 34, 36, 256, 54, -1, 1, _encode_tq1_0, _decode_tq1_0),
    Quantised("TQ2_0", 35, 37, 256, 66, -1, 1, _encode_tq2_0, _decode_tq2_0),
    Quantised("Q2_0", 42, 41, 64, 18, -1, 2, _encode_q2_0, _decode_q2_0),
    Quantised("Q4_0", 2, 2, 32, 18, -8, 7, _encode_q4_0, _decode_q4_0),
    Quantised("Q6_K", 14, 18, 256, 210, -32, 31, encode_q6_k, _decode_q6_k),
    Quantised("Q8_0", 8, 7, 32, 34, -128, 127, _encode_q8_0, _decode_q8_0),
)
TYPES: dict[str, Float | Quantised] = {type.name: type for type in (*FLOATS, *QUANTISED)}
BY_CODE: dict[int, Float | Quantised] = {type.code: type for type in TYPES.values()}
