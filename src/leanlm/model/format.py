"""How a weight matrix is stored, as frozen data: grouped integers or ternary. Loads no torch. Float is the absence of one.

R rows (outputs)  n columns (inputs)
"""

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from leanlm.errors import UsageError

BITS = (2, 3, 4, 6, 8)
# What stays float: small, and exponentials are taken of it, for the decays of Mamba-1's scan and the weights of merged tokens.
NEVER = ("dt_proj.weight", "weight_proj.weight")
SCALE_BITS, START_BITS, ZERO_BITS, ORDER_BITS = 16, 32, 8, 32  # of one scale, region start, zero point, group number


@dataclass(frozen=True)
class Grouped:
    """weight = scale * (code - zero), codes of `bits` bits; a scale for every output and `group` inputs (0: all inputs).

    Symmetric: zero is 2^(bits - 1). Otherwise every group has a zero of its own. `ordered`: consecutive columns form the
    groups; otherwise a table says which group a column is of (GPTQ's act-order without static groups).
    """

    kind: ClassVar[str] = "grouped"
    bits: int
    group: int = 0
    symmetric: bool = True
    ordered: bool = True

    def __post_init__(self):
        if self.bits not in BITS:
            raise UsageError(f"{self.bits} bits: weights are held in {', '.join(map(str, BITS))} bits")
        if self.group < 0:
            raise UsageError(f"a group of {self.group} inputs: give a positive number, or 0 for one group per output")

    def __str__(self) -> str:
        channel = "-channel" if self.bits <= 4 else ""  # what `parse` takes to be meant without a group
        return f"int{self.bits}" + (f"-g{self.group}" if self.group else channel) + ("" if self.symmetric else "-asym")

    def groups(self, n: int) -> int:
        """Groups in a row of n inputs; raises UsageError where they do not come out even."""
        if self.group and n % self.group:
            fits = [str(g) for g in (128, 64, 32, 16, 8) if g < self.group and n % g == 0]
            choices = f"groups of {' or '.join(fits)}, or " if fits else ""
            raise UsageError(f"{n} inputs do not divide into groups of {self.group}; choose {choices}one scale per output")
        return n // self.group if self.group else 1

    def size(self, R: int, n: int) -> float:
        """Bits of everything stored for [R, n], scales included."""
        each = SCALE_BITS + (0 if self.symmetric else ZERO_BITS)
        return R * (8 * -(-n * self.bits // 8) + self.groups(n) * each) + (0 if self.ordered else ORDER_BITS * n)


@dataclass(frozen=True)
class Ternary:
    """weight = scale of its region * -1, 0 or 1; regions are bands of rows or of columns. Two bits a weight in memory."""

    kind: ClassVar[str] = "ternary"
    axis: Literal["rows", "columns"] = "rows"
    regions: int = 1

    def __str__(self) -> str:
        return "ternary"

    def size(self, R: int, n: int) -> float:
        """Bits of everything stored for [R, n], scales included."""
        return 8 * R * -(-n // 4) + self.regions * (SCALE_BITS + START_BITS)


Format = Grouped | Ternary


def parse(text: str) -> Grouped | Literal["ternary", "float"]:
    """ "int4", "int4-g64", "int8-channel", "int3-g128-asym", "ternary" or "float".

    Without a group, up to four bits have groups of 128 and more bits one scale per output, as the Spectra suite's QuantLMs
    (arXiv 2407.12327, section 4.2). Raises UsageError.
    """
    if text in ("ternary", "float"):
        return text
    found = re.fullmatch(r"int(\d+)(?:-(?:g(\d+)|(channel)))?(-asym)?", text)
    if not found:
        raise UsageError(f"{text!r} is no format; examples: int4, int4-g64, int8-channel, int3-g128-asym, ternary, float")
    bits, group, channel, asymmetric = found.groups()
    default = 128 if int(bits) <= 4 and not channel else 0
    return Grouped(int(bits), int(group) if group else default, not asymmetric)
