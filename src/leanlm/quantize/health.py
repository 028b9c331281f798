"""The health of a model's weights: damage and oddities, and whether its matrices are ternary.

The ternary check is the one Spectra publishes: a matrix trained on S model-parallel shards has one scale per shard, so its
weights have at most S + 1 distinct magnitudes, zero among them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from leanlm.model.format import NEVER
from leanlm.model.language_model import LanguageModel
from leanlm.model.packed import GroupedWeight, Packed, TernaryWeight
from leanlm.ops import packing
from leanlm.quantize.plan import TABLES
from leanlm.quantize.ternary import distinct

OUTLIER = 40  # times the root mean square of its matrix: beyond it a weight is named


@dataclass(frozen=True)
class Health:
    """`damage` makes a model useless, `oddities` may be meant. `magnitudes`: distinct ones of every matrix inside the layers
    but those packed as integers of more bits; `ternary` the names of those with one per band of rows or columns."""

    damage: tuple[str, ...]
    oddities: tuple[str, ...]
    magnitudes: Mapping[str, int]
    ternary: frozenset[str]


def examine(module: LanguageModel) -> Health:
    """Looks at every weight of the model; changes nothing."""
    damage, oddities, magnitudes, ternary = [], [], {}, set()
    matrices = module.matrices()
    for name, weight in module.weights().items():
        values = weight.dequantize() if isinstance(weight, Packed) else weight.detach()
        if not values.isfinite().all():
            damage.append(f"{name}: {int((~values.isfinite()).sum()):,} of {values.numel():,} values are NaN or infinite")
            continue
        if name in matrices:
            oddities += odd_matrix(name, values)
        else:
            oddities += odd_vector(name, values)
        meant_as_integers = isinstance(weight, GroupedWeight) and weight.format.bits > 2
        if name in matrices and name not in TABLES and not name.endswith(NEVER) and not meant_as_integers:
            magnitudes[name] = distinct(values.abs())
            if isinstance(weight, TernaryWeight) or packing.ternarise(values) is not None:
                ternary.add(name)
    return Health(tuple(damage), tuple(oddities), magnitudes, frozenset(ternary))


def odd_matrix(name: str, values: Tensor) -> Iterator[str]:
    R, n = values.shape
    used = values != 0
    if not used.any():
        yield f"{name}: all zeros"
        return
    dead_rows, dead_columns = R - int(used.any(1).sum()), n - int(used.any(0).sum())
    if dead_rows and name != "embedding.weight":  # unused tokens of a padded vocabulary are usual
        yield f"{name}: {dead_rows:,} of {R:,} outputs have no weight but zero"
    if dead_columns:
        yield f"{name}: {dead_columns:,} of {n:,} inputs have no weight but zero"
    largest, mean = float(values.abs().max()), float(values.float().square().mean().sqrt())
    if largest > OUTLIER * mean:
        yield f"{name}: its largest weight, {largest:.3g}, is {largest / mean:.0f} times the root mean square"


def odd_vector(name: str, values: Tensor) -> Iterator[str]:
    if not values.any() and name.endswith(("norm.weight", "norm_weight")):
        yield f"{name}: a norm whose weights are all zero lets nothing through"
    if name.endswith("A_log") and float(values.max()) > 20:
        yield f"{name}: decays up to exp(-exp({float(values.max()):.3g})) forget everything at once"
