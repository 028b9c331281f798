"""Linear layers and embeddings whose weight format is a replaceable part: a float parameter, a `Packed` matrix, or latents
that are ternary to all who multiply with them."""

import torch
from torch import Tensor, nn

from leanlm.model import packed
from leanlm.model.format import Format
from leanlm.model.packed import Packed
from leanlm.ops.absmean import Bands, ternarised


class Matrix(nn.Module):
    """A layer with one matrix `weight` [R, n]: a Parameter, or `Packed` where `format` is given."""

    weight: nn.Parameter | Packed

    def __init__(self, R: int, n: int, format: Format | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(R, n)) if format is None else packed.empty(format, R, n)

    @property
    def format(self) -> Format | None:
        """None for float."""
        return self.weight.format if isinstance(self.weight, Packed) else None

    def hold(self, weight: Tensor | Packed) -> None:
        """Take this weight in place of the one held. Raises ValueError for another shape."""
        if tuple(weight.shape) != tuple(self.weight.shape):
            raise ValueError(f"a weight of shape {list(weight.shape)} cannot replace one of {list(self.weight.shape)}")
        del self.weight
        self.weight = weight if isinstance(weight, Packed) else nn.Parameter(weight)

    def dequantize(self) -> Tensor:
        """The exact weight as a floating-point matrix [R, n]: the parameter itself, or float32 of what is packed."""
        return self.weight.dequantize(torch.float32) if isinstance(self.weight, Packed) else self.weight

    @property
    def bits(self) -> float:
        """Bits stored per weight, scales included."""
        return self.weight.bits if isinstance(self.weight, Packed) else 8.0 * self.weight.element_size()


class Linear(Matrix):
    """y = x W^T + b with W [out_features, in_features].

    Where `bands` are given, the parameter `weight` holds latents, and W is what they round to (`model.ternary`)."""

    bands: Bands | None = None

    def __init__(self, in_features: int, out_features: int, bias: bool = False, format: Format | None = None):
        super().__init__(out_features, in_features, format)
        self.in_features, self.out_features = in_features, out_features
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features] in x's dtype."""
        weight = self.weight if self.bands is None else ternarised(self.weight, self.bands)
        return packed.matmul(x, weight, self.bias)

    def reset(self, std: float) -> None:
        """Fresh weights: normal with this standard deviation, bias zero."""
        nn.init.normal_(self.weight, std=std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class Embedding(Matrix):
    """A row of the weight [tokens, width] for every id; also the head of a tied model."""

    def __init__(self, tokens: int, width: int, format: Format | None = None):
        super().__init__(tokens, width, format)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] int64 -> [..., width] in the dtype of the weight, or of the scales."""
        if isinstance(self.weight, Packed):
            return self.weight.take(ids.flatten()).dequantize().unflatten(0, ids.shape)
        return nn.functional.embedding(ids, self.weight)
