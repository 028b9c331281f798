"""Random products of the native library, and by how much each number of them may be off."""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from leanlm.model.format import Grouped, Ternary
from leanlm.model.packed import Packed, TernaryWeight
from native_calls import DTYPES, Draw, stride
from packed_models import packed

EXACT, INT8 = 0, 1
GROUP = 32  # activations that share a scale in 8 bits
HALF_A_STEP = {EXACT: 0.0, INT8: 0.5 / 127}  # of the largest of GROUP activations
FLOAT32 = 3e-6  # of the largest possible sum: what adding up in float32 may lose


class Product:
    """A random matrix of n columns in any format, and where its product goes."""

    def __init__(self, draw: Draw, M: int, n: int, group: int):
        self.weight = self.random_weight(draw, n, group)
        R = len(self.weight)
        self.bias, self.y, self.accumulate = draw.choice([None, draw.values(R)]), draw.rows(M, R), draw.choice([False, True])

    @staticmethod
    def random_weight(draw: Draw, n: int, group: int) -> Tensor | Packed:
        R, number = draw.randint(1, 60), draw.randrange(1 << 30)
        kind = draw.choice(["float", "ternary", "grouped", "grouped", "grouped"])
        if kind == "float":
            return draw.rows(R, n).to(draw.choice(list(DTYPES)))
        if kind == "ternary":
            axis = draw.choice(["rows", "columns"])
            return packed(Ternary(axis, draw.randint(1, min(4, R if axis == "rows" else n))), R, n, number)
        ordered = not group or draw.random() < 0.8
        return packed(Grouped(draw.choice([2, 3, 4, 6, 8]), group, draw.random() < 0.5, ordered), R, n, number)

    def expected(self, x: Tensor, precision: int) -> tuple[Tensor, Tensor]:
        """What y is to become, in float64, and by how much each number of it may be off. x float64."""
        weight = self.weight
        dense = weight.double() if isinstance(weight, Tensor) else weight.dequantize(torch.float32).double()
        wanted = x @ dense.T
        reach = dense.abs().amax(1)
        if isinstance(weight, TernaryWeight) and weight.along_rows:
            reach = weight.each_scale().double()
        elif isinstance(weight, TernaryWeight):  # whose scales are those of the activations
            x, dense = x * weight.each_scale().double(), weight.unpacked().double()
            reach = torch.ones(len(dense), dtype=torch.float64)
        elif isinstance(weight, Packed):
            reach = weight.scales.double().amax(1) * 2**weight.format.bits  # zero points are taken off at the end
        largest = F.pad(x.abs(), (0, -x.shape[1] % GROUP)).unflatten(-1, (-1, GROUP)).amax(-1)
        largest = largest.repeat_interleave(GROUP, -1)[:, : x.shape[1]]
        rounding = 0.0 if isinstance(weight, Tensor) else HALF_A_STEP[precision]
        bound = rounding * (largest @ dense.abs().T) + FLOAT32 * largest.sum(-1, keepdim=True) * reach
        for added in (self.y.double() if self.accumulate else None, self.bias):
            if added is not None:
                wanted, bound = wanted + added, bound + 1e-6 * added.abs()
        return wanted, bound + 1e-6 * wanted.abs()


class Matmul:
    """One call: up to three products of the same activations, which may be columns of something wider."""

    def __init__(self, draw: Draw):
        group = draw.choice([0, 0, 8, 24, 32, 32, 64, 128])
        n, M = group * draw.randint(1, 4) if group else draw.randint(1, 400), draw.choice([1, 1, 2, 3, 4, draw.randint(5, 20)])
        self.x = draw.choice([1.0, 1e-4, 1e4]) * draw.rows(M, n)
        if draw.random() < 0.2:
            self.x[draw.randrange(M), draw.randrange(n)] *= 1000
        self.precision = draw.choice([EXACT, INT8])
        self.products = [Product(draw, M, n, group) for _ in range(draw.choice([1, 1, 2, 3]))]

    def check(self, native) -> None:
        """Every number of the results within what rounding can do to it; done once, because it writes to them."""
        expected = [product.expected(self.x.double(), self.precision) for product in self.products]
        weights = [native.weight_of(product.weight) for product in self.products]
        array = (native.Product * len(weights))(
            *(
                native.Product(w, p.y.data_ptr(), stride(p.y), None if p.bias is None else p.bias.data_ptr(), p.accumulate)
                for w, p in zip(weights, self.products, strict=True)
            )
        )
        first = ctypes.cast(array, ctypes.POINTER(native.Product))
        M = len(self.x)
        assert not native.library().leanlm_matmul(first, len(array), self.x.data_ptr(), stride(self.x), M, self.precision)
        for product, (wanted, bound) in zip(self.products, expected, strict=True):
            assert ((product.y - wanted).abs() <= bound).all(), (product.weight, self.x.shape, self.precision)
