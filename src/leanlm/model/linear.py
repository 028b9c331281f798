"""A linear layer whose weight format is a replaceable part. Formats so far: float."""

import torch
from torch import Tensor, nn

from leanlm import ops


class Linear(nn.Module):
    """y = x W^T + b with W [out_features, in_features] in floating point."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features] in x's dtype."""
        return ops.linear(x, self.weight, self.bias)

    def dequantize(self) -> Tensor:
        """The exact weight as a floating-point matrix."""
        return self.weight

    @property
    def bits(self) -> float:
        """Bits stored per weight."""
        return 8.0 * self.weight.element_size()

    def reset(self, std: float) -> None:
        """Fresh weights: normal with this standard deviation, bias zero."""
        nn.init.normal_(self.weight, std=std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
