"""Layouts of few-bit weights: integer codes as dense bits, five trits in a byte, and the scales of a ternary matrix.

R rows (outputs)  n columns (inputs)  G groups of columns  S scale regions
"""

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

TRITS = 5  # in a byte: 3^5 = 243 <= 256
BAND = 1 << 18  # of four bytes each, that are converted at once: their buffers stay small


def packed_bytes(n: int, bits: int) -> int:
    """Bytes of a row of n codes."""
    return -(-n * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes [R, n] (uint8, below 2^bits) as dense little-endian bits: code j of a row from bit j * bits on, the row filled up
    with zeros to whole bytes. Returns uint8 [R, packed_bytes(n, bits)]."""
    R, n = codes.shape
    if 8 % bits == 0:
        per_byte = 8 // bits
        padded = torch.nn.functional.pad(codes, (0, -n % per_byte)).view(R, -1, per_byte)
        packed = padded[..., 0].clone()
        for j in range(1, per_byte):
            packed |= padded[..., j] << (j * bits)
        return packed
    # Eight codes are `bits` whole bytes: gather them in an int64 and take its bytes.
    padded = torch.nn.functional.pad(codes, (0, -n % 8)).view(R, -1, 8)
    words = torch.zeros(padded.shape[:2], dtype=torch.int64, device=codes.device)
    for j in range(8):
        words |= padded[..., j].long() << (j * bits)
    spread = torch.stack([(words >> (8 * b)).to(torch.uint8) for b in range(bits)], -1)
    return spread.flatten(1)[:, : packed_bytes(n, bits)].contiguous()


def unpack(packed: Tensor, bits: int, n: int) -> Tensor:
    """The inverse of `pack`: uint8 codes [R, n]."""
    R, mask = len(packed), (1 << bits) - 1
    if 8 % bits == 0:
        codes = torch.stack([(packed >> (j * bits)) & mask for j in range(8 // bits)], -1)
        return codes.view(R, -1)[:, :n].contiguous()
    padded = torch.nn.functional.pad(packed, (0, -packed.shape[1] % bits)).view(R, -1, bits)
    words = torch.zeros(padded.shape[:2], dtype=torch.int64, device=packed.device)
    for b in range(bits):
        words |= padded[..., b].long() << (8 * b)
    codes = torch.stack([((words >> (j * bits)) & mask).to(torch.uint8) for j in range(8)], -1)
    return codes.view(R, -1)[:, :n].contiguous()


def pack_trits(trits: Tensor) -> Tensor:
    """Trits [R, n] (-1, 0, 1) five to a byte, rows filled up with zeros: uint8 [R, ceil(n / 5)].

    The digits trit + 1, first one most significant, are a number v < 243, stored as ceil(256 v / 243), so that multiplying
    by three pushes out one digit after the other (Spectra-1.1, arXiv 2506.23025, the 1.6-bit packing).
    """
    digits = torch.nn.functional.pad(trits + 1, (0, -trits.shape[1] % TRITS), value=1).view(len(trits), -1, TRITS).int()
    value = torch.zeros(digits.shape[:2], dtype=torch.int32, device=trits.device)
    for j in range(TRITS):
        value = value * 3 + digits[..., j]
    return ((256 * value + 242) // 243).to(torch.uint8)


def unpack_trits(packed: Tensor, n: int) -> Tensor:
    """The inverse of `pack_trits`: int8 [R, n]."""
    digits, rest = [], packed.int()
    for _ in range(TRITS):
        rest = rest * 3
        digits.append((rest >> 8).to(torch.int8) - 1)
        rest = rest & 255
    return torch.stack(digits, -1).view(len(packed), -1)[:, :n].contiguous()


def codes_of_trits(packed: Tensor, n: int) -> Tensor:
    """Trits as `pack_trits` holds them as 2-bit codes trit + 1 as `pack` does, on the CPU: uint8 [R, packed_bytes(n, 2)].

    Four bytes become five, every new one made of one or two old ones by tables: bytes all the way, in bands.
    """
    R, held = packed.shape
    packed = torch.nn.functional.pad(packed, (0, -held % 4)) if held % 4 else packed
    fours = packed.reshape(-1, 4).numpy()
    codes = np.empty((len(fours), 5), np.uint8)
    for start in range(0, len(fours), BAND):
        band = fours[start : start + BAND]
        columns = [column.tobytes() for column in band.T]
        for new, sources in enumerate(_sources()):
            parts = [np.frombuffer(columns[old].translate(table), np.uint8) for old, table in sources]
            codes[start : start + len(band), new] = functools.reduce(np.bitwise_or, parts)
    codes = torch.from_numpy(codes).view(R, -1)[:, : packed_bytes(n, 2)].contiguous()
    if n % 4:
        codes[:, -1] &= (1 << 2 * (n % 4)) - 1
    return codes


@functools.cache
def _sources() -> list[list[tuple[int, bytes]]]:
    """Of each of five bytes of 2-bit codes: which of four bytes of trits it is made of, and what each gives to it."""
    digits = unpack_trits(torch.arange(256, dtype=torch.uint8)[:, None], TRITS) + 1  # [256, 5]
    found = []
    for new in range(5):
        given: dict[int, Tensor] = {}
        for place in range(4):
            old, digit = divmod(4 * new + place, TRITS)
            given[old] = given.get(old, 0) + (digits[:, digit] << (2 * place)).to(torch.uint8)
        found.append([(old, bytes(table.tolist())) for old, table in given.items()])
    return found


class Trits(NamedTuple):
    """A ternary matrix taken apart: weight = trit * scale of its region, exactly."""

    trits: Tensor  # int8 [R, n] of -1, 0, 1
    scales: Tensor  # [S] in the matrix's own dtype
    starts: Tensor  # int32 [S]: first row (or column) of each region; the first is 0
    along_rows: bool  # regions are bands of rows; otherwise of columns


def ternarise(weight: Tensor) -> Trits | None:
    """The weight [R, n] as trits and scales, or None where it is not ternary.

    The scale of a region is the magnitude of its non-zero weights, never a mean: a mean would shrink a matrix that is
    ternary already. Regions are found in the values: bands of rows, or else of columns, in which there is one magnitude.
    """
    found = [
        (len(regions[0]), not along_rows, regions)
        for along_rows in (True, False)
        if (regions := _regions(weight.abs() if along_rows else weight.abs().T)) is not None
    ]
    if not found:
        return None
    _, along_columns, (scales, starts) = min(found, key=lambda entry: entry[:2])
    return Trits(weight.sign().to(torch.int8), scales, starts, not along_columns)


def _regions(magnitudes: Tensor) -> tuple[Tensor, Tensor] | None:
    """(scales, starts) of the bands of rows with one non-zero magnitude each; None where a row has several."""
    largest = magnitudes.amax(1)
    if not ((magnitudes == 0) | (magnitudes == largest[:, None])).all():
        return None
    # A row of zeros joins the band before it (the first band, where it comes first).
    held = largest.nonzero().flatten()
    if not len(held):
        return largest.new_zeros(1), torch.zeros(1, dtype=torch.int32)
    changes = largest[held][1:] != largest[held][:-1]
    first = torch.cat([held[:1], held[1:][changes]])
    starts = first.to(torch.int32)
    starts[0] = 0
    return largest[first], starts


def spread(values: Tensor, starts: Tensor, n: int) -> Tensor:
    """A value per region as a value per row (or column): [n]."""
    ends = torch.cat([starts[1:], starts.new_tensor([n])])
    return values.repeat_interleave((ends - starts).long(), output_size=n)  # told, the device is not waited for


def grouped_values(codes: Tensor, scales: Tensor, zeros: Tensor | int, g_idx: Tensor | None = None) -> Tensor:
    """scale * (code - zero) in float32, which is exact for scales in half precision.

    codes [R, n] integers; scales [R, G]; zeros [R, G] or one number; column j is of group j * G / n, or of g_idx[j].
    """
    n, G = codes.shape[1], scales.shape[1]
    if g_idx is None and n % G == 0:
        steps = codes.view(len(codes), G, n // G).float() - (zeros.float()[..., None] if isinstance(zeros, Tensor) else zeros)
        return (steps * scales.float()[..., None]).view(len(codes), n)
    group = g_idx.long() if g_idx is not None else torch.arange(n, device=codes.device) * G // n
    return (codes.float() - (zeros.float()[:, group] if isinstance(zeros, Tensor) else zeros)) * scales.float()[:, group]


def ternary_values(trits: Tensor, scales: Tensor, starts: Tensor, along_rows: bool) -> Tensor:
    """trit * scale of its region, in the scales' dtype."""
    each = spread(scales, starts, trits.shape[0 if along_rows else 1])
    return trits.to(scales.dtype) * (each[:, None] if along_rows else each)
