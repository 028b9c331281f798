"""The short causal depthwise convolution in front of a scan or of attention."""

import torch
from torch import Tensor, nn

from leanlm import ops
from leanlm.model.state import Memory


class CausalConv(nn.Module):
    """Convolves [B, L, channels] over `taps` tokens; remembers the last taps - 1 inputs as memory["conv"]."""

    def __init__(self, channels: int, taps: int, bias: bool = True, activation: str = "identity"):
        super().__init__()
        self.activation = activation
        self.weight = nn.Parameter(torch.empty(channels, 1, taps))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def forward(self, x: Tensor, memory: Memory | None = None, segments: Tensor | None = None) -> Tensor:
        """Same shape out; updates memory["conv"] [B, channels, taps - 1] in place."""
        tail = memory["conv"] if memory else None
        y, tail = ops.conv(x, self.weight[:, 0], self.bias, tail, segments, self.activation)
        if memory:
            memory["conv"].copy_(tail.detach())
        return y

    def new_tail(self, batch: int, device, dtype) -> Tensor:
        channels, _, taps = self.weight.shape
        return torch.zeros(batch, channels, taps - 1, device=device or self.weight.device, dtype=dtype)

    def reset(self) -> None:
        bound = self.weight.shape[-1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
