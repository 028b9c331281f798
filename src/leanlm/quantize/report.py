"""What quantising did: every matrix with its format, error, bits and bytes, and the whole model before and after.

Loads no torch."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class MatrixReport:
    """One matrix. `bits` are those stored per weight, scales included; `weight_error` is |W - Q|^2 / |W|^2; `output_error`
    the same of its outputs on the calibration text, None where none was read."""

    name: str
    format: str
    rows: int
    columns: int
    bits: float
    bytes: int
    weight_error: float
    output_error: float | None = None

    @property
    def weights(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class Report:
    """A quantised model. Bytes are those of all its weights in memory; bits per byte those of the held-out text, None if not
    read; `container` and `file_bytes` how and in how many bytes the weights were stored, None before they were."""

    scheme: str
    method: str
    matrices: tuple[MatrixReport, ...]
    bytes_before: int
    bytes_after: int
    bits_per_byte_before: float | None = None
    bits_per_byte_after: float | None = None
    container: str | None = None
    file_bytes: int | None = None

    @property
    def bits(self) -> float:
        """Bits per weight of all the matrices together."""
        return 8 * sum(m.bytes for m in self.matrices) / max(1, sum(m.weights for m in self.matrices))

    def to_dict(self) -> dict:
        """Plain JSON data."""
        return {**dataclasses.asdict(self), "bits": self.bits}

    def lines(self) -> list[Sequence[str]]:
        """Rows of a table: a heading, a row per matrix, the total."""
        rows = [("matrix", "format", "shape", "bits", "bytes", "weight error", "output error")]
        for m in self.matrices:
            shape = f"{m.rows} x {m.columns}"
            output = "" if m.output_error is None else f"{m.output_error:.2e}"
            rows.append((m.name, m.format, shape, f"{m.bits:.3f}", f"{m.bytes:,}", f"{m.weight_error:.2e}", output))
        total = sum(m.bytes for m in self.matrices)
        return [*rows, ("all of these", "", "", f"{self.bits:.3f}", f"{total:,}", "", "")]

    def summary(self) -> list[str]:
        """The whole model in a line or two."""
        ratio = self.bytes_before / max(1, self.bytes_after)
        said = [f"weights: {self.bytes_before:,} bytes before, {self.bytes_after:,} after ({ratio:.2f} times smaller)"]
        if self.file_bytes is not None:
            ternary = self.container != "leanlm" and any(m.format == "ternary" for m in self.matrices)
            smaller = "; --container leanlm stores a ternary weight in 1.6 bits" if ternary else ""
            said.append(f"file: {self.file_bytes:,} bytes, packed weights in {self.container}{smaller}")
        if self.bits_per_byte_before is not None and self.bits_per_byte_after is not None:
            change = 100 * (self.bits_per_byte_after / self.bits_per_byte_before - 1)
            said.append(
                f"held-out text: {self.bits_per_byte_before:.4f} bits per byte before, {self.bits_per_byte_after:.4f} after "
                f"({change:+.2f} %)"
            )
        return said
