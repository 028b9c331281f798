"""Ternary weights under training: latents that every forward pass rounds to -1, 0 or 1 times their region's mean magnitude.

Kaushal et al. 2024 (Spectra, arXiv 2407.12327), section 3.1 and table 1. The scale is rounded to the 16 bits in which it is
stored, so that what is packed afterwards is to the bit what was trained.

R rows (outputs)  n columns (inputs)  S scale regions
"""

from typing import NamedTuple

import torch
from torch import Tensor

from leanlm.ops.packing import Trits

EPS = 1e-5  # added to the mean


class Bands(NamedTuple):
    """The regions of a matrix, one after another: so many rows each, or columns."""

    sizes: tuple[int, ...]
    along_rows: bool

    @property
    def dim(self) -> int:
        return 0 if self.along_rows else 1


def scales(latent: Tensor, bands: Bands) -> Tensor:
    """EPS + mean |w| of every region of the latents [R, n]: float16 [S]."""
    parts = latent.to(torch.promote_types(latent.dtype, torch.float32)).abs().split(bands.sizes, bands.dim)
    return torch.stack([part.mean() for part in parts]).add(EPS).half()


def trits(latent: Tensor, scales: Tensor, bands: Bands) -> tuple[Tensor, Tensor]:
    """round(clip(w / scale, -1, 1)) [R, n], halves to 0, in the latents' dtype; the scale of every row [R, 1] or column [n]."""
    each = scales.to(latent.dtype)
    if len(bands.sizes) > 1:
        each = each.repeat_interleave(torch.tensor(bands.sizes, device=each.device), output_size=sum(bands.sizes))
        each = each[:, None] if bands.along_rows else each
    return (latent / each).clamp_(-1, 1).round_(), each


def ternarise(latent: Tensor, bands: Bands) -> Trits:
    """The latents [R, n] rounded and taken apart, to be packed."""
    found = scales(latent, bands)
    starts = torch.tensor((0, *bands.sizes[:-1]), dtype=torch.int32, device=latent.device).cumsum(0, dtype=torch.int32)
    return Trits(trits(latent, found, bands)[0].to(torch.int8), found, starts, bands.along_rows)


def ternarised(latent: Tensor, bands: Bands) -> Tensor:
    """The latents [R, n] rounded, in their dtype; the gradient passes straight through rounding, clipping and scale."""
    return _StraightThrough.apply(latent, bands)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(latent: Tensor, bands: Bands) -> Tensor:
        rounded, each = trits(latent, scales(latent, bands), bands)
        return rounded.mul_(each)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def latents(values: Tensor, bands: Bands) -> Tensor | None:
    """float32 latents that round to these ternary values [R, n]; None where a region has several magnitudes.

    Applying the mean to a ternary matrix itself would shrink it by its share of zeros. Zeros stay 0, as far from one threshold
    as from the other; the others get the one magnitude whose mean over the region is its scale. Scales that 16 bits do not
    hold, and those below 2 EPS, do not come back: compare `ternarised` with the values.
    """
    parts = []
    for band in values.float().split(bands.sizes, bands.dim):
        magnitudes = band.abs()
        scale = magnitudes.max()
        if not ((magnitudes == 0) | (magnitudes == scale)).all():
            return None
        held = int(magnitudes.count_nonzero())
        parts.append(band.sign() * ((scale - EPS) * (band.numel() / max(1, held))))
    return torch.cat(parts, bands.dim)
