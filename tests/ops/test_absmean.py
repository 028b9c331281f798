"""Ternarising under training: the published formula, its gradient, and latents that give ternary values back to the bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanlm.model.packed import TernaryWeight
from leanlm.ops import absmean
from leanlm.ops.absmean import Bands

SPLITS = [Bands((12,), True), Bands((4, 4, 4), True), Bands((10,), False), Bands((3, 7), False)]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(latent, bands):
    """Table 1 of the paper, weight by weight, with the scale as it is stored."""
    made, at = torch.zeros_like(latent), 0
    for size in bands.sizes:
        places = [(i, j) for i in range(12) for j in range(10) if at <= (i if bands.along_rows else j) < at + size]
        scale = float(torch.tensor(1e-5 + sum(abs(float(latent[p])) for p in places) / len(places)).half())
        for p in places:
            ratio = float(latent[p]) / scale
            made[p] = scale * (0 if abs(ratio) <= 0.5 else 1 if ratio > 0 else -1)
        at += size
    return made


@pytest.mark.parametrize("bands", SPLITS, ids=str)
def test_it_is_the_papers_formula(bands):
    latent = normal(12, 10) * torch.linspace(0.1, 3, 10)
    torch.testing.assert_close(absmean.ternarised(latent, bands), by_hand(latent, bands), atol=0, rtol=0)


def test_halves_become_zero_and_larger_ones_do_not():
    latent = torch.tensor([[1.0, -1.0, 0.25, -0.25, 0.25, 0.25, 0.5, 0.5]])
    latent[0, :2] += 4 * 1e-5  # so that the scale rounds to 0.5
    assert absmean.scales(latent, Bands((1,), True)) == 0.5
    assert absmean.ternarised(latent, Bands((1,), True)).tolist() == [[0.5, -0.5, 0, 0, 0, 0, 0.5, 0.5]]
    latent[0, 2] = 0.2500001
    assert absmean.ternarised(latent, Bands((1,), True))[0, 2] == 0.5


@pytest.mark.parametrize("bands", SPLITS, ids=str)
def test_the_gradient_passes_straight_through(bands):
    """dL/dx = dL/dy W~ and dL/dW = dL/dy^T x (appendix A.1), with no mask where a latent is clipped."""
    latent, x = normal(12, 10).requires_grad_(), normal(5, 10, seed=1).requires_grad_()
    up = normal(5, 12, seed=2)
    (x @ absmean.ternarised(latent, bands).T).backward(up)
    torch.testing.assert_close(latent.grad, up.T @ x.detach())
    torch.testing.assert_close(x.grad, up @ by_hand(latent.detach(), bands))


@pytest.mark.parametrize("bands", SPLITS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_packed_is_what_was_trained(bands, dtype):
    latent = normal(12, 10) * 0.02
    packed = TernaryWeight.of(absmean.ternarise(latent, bands))
    assert torch.equal(packed.dequantize(dtype), absmean.ternarised(latent, bands).to(dtype))
    assert packed.scales.dtype == torch.float16 and len(packed.scales) == len(bands.sizes)


@st.composite
def ternaries(draw):
    """Ternary values in bands with scales of 16 bits, some bands sparse."""
    count, along_rows = draw(st.integers(1, 4)), draw(st.booleans())
    extent, other = draw(st.integers(1, 40)), draw(st.integers(1, 60))
    chance = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    bands = []
    for _ in range(count):
        shape = (extent, other) if along_rows else (other, extent)
        scale = torch.tensor(draw(st.floats(2.1e-5, 100))).to(draw(st.sampled_from((torch.float16, torch.bfloat16)))).float()
        held = torch.rand(shape, generator=chance) < draw(st.floats(0, 1))
        bands.append(torch.where(torch.rand(shape, generator=chance) < 0.5, scale, -scale) * held)
    return torch.cat(bands, 0 if along_rows else 1), Bands((extent,) * count, along_rows)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(ternaries())
def test_latents_give_ternary_values_back_to_the_bit(case):
    values, bands = case
    assert torch.equal(absmean.ternarised(absmean.latents(values, bands), bands), values)


def test_values_with_two_magnitudes_in_a_band_have_no_latents():
    values = torch.tensor([[1.0, -1.0], [0.0, 2.0]])
    assert absmean.latents(values, Bands((2,), True)) is None
    assert absmean.latents(values, Bands((1, 1), True)) is not None


def test_applying_the_mean_to_ternary_values_would_shrink_them():
    """Why `latents` is needed: absmean is not idempotent (Spectra's issue 3)."""
    values = torch.tensor([[0.5, 0.0, -0.5, 0.0]])
    assert absmean.ternarised(values, Bands((1,), True)).abs().max() < 0.3


def test_it_compiles_to_the_same_bits():
    latent, bands = normal(12, 10), Bands((6, 6), True)
    compiled = torch.compile(absmean.ternarised, backend="aot_eager", fullgraph=True)
    latent.requires_grad_()
    made = compiled(latent, bands)
    assert torch.equal(made, absmean.ternarised(latent, bands))
    made.sum().backward()
    assert torch.equal(latent.grad, torch.ones_like(latent))
