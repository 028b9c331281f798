"""Grids and rounding to the nearest point."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanlm.errors import CheckpointError, UsageError
from leanlm.model.format import Grouped
from leanlm.quantize import rtn

formats = st.builds(Grouped, st.sampled_from((2, 3, 4, 6, 8)), st.sampled_from((0, 4, 8)), st.booleans())
quick = settings(max_examples=60, deadline=None, derandomize=True)


def random(R, n, seed=0, scale=1.0):
    return scale * torch.randn(R, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()


def points(packed):
    """Every value that a group can take: [R, G, 2^bits]."""
    zero = packed.zero if isinstance(packed.zero, int) else packed.zero[..., None].double()
    return packed.scales[..., None].double() * (torch.arange(1 << packed.format.bits) - zero)


@quick
@given(formats, st.integers(1, 5), st.sampled_from((8, 16, 24)), st.integers(0, 999), st.sampled_from((1e-7, 0.02, 3e4, 3e6)))
def test_every_weight_takes_the_nearest_point_of_its_groups_grid(format, R, n, seed, scale):
    weight = random(R, n, seed, scale)
    packed = rtn.quantize(weight, format)
    found = packed.dequantize(torch.float32).double().view(R, format.groups(n), -1)
    nearest = (weight.double().view(R, format.groups(n), -1, 1) - points(packed)[:, :, None]).abs().amin(-1)
    distance = (weight.double().view_as(found) - found).abs()
    assert torch.allclose(distance, nearest, rtol=1e-4, atol=1e-6 * weight.abs().max().item())


@quick
@given(formats, st.integers(0, 999))
def test_the_grid_is_the_published_one(format, seed):
    weight = random(3, 16, seed)
    scales, zeros = rtn.grid(weight, format)
    assert scales.dtype == torch.float16 and scales.shape == (3, format.groups(16))
    low, high = weight.view(*scales.shape, -1).aminmax(dim=-1)
    if format.symmetric:
        high = torch.maximum(high, -low)
        low = -high
        assert zeros is None
    else:
        low, high = low.clamp(max=0), high.clamp(min=0)
        assert zeros.dtype == torch.uint8
        assert torch.equal(zeros.float(), (-low / scales.float()).round().clamp(0, (1 << format.bits) - 1))
    assert torch.allclose(scales.float(), (high - low) / ((1 << format.bits) - 1), rtol=2**-11)


def test_codes_are_chosen_for_the_scale_that_is_stored():
    """With the scale before rounding to float16 some codes would differ; they would be further from the weight."""
    weight, format = random(64, 256), Grouped(8)
    packed = rtn.quantize(weight, format)
    unrounded = 2 * weight.abs().amax(1, keepdim=True) / 255
    assert not torch.equal(packed.unpacked().float(), ((weight / unrounded).round() + 128).clamp(0, 255))
    assert torch.equal(packed.unpacked(), rtn.codes(weight, packed.scales, None, 8))


@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_stay_zeros(symmetric):
    weight = random(4, 16)
    weight[1], weight[2, :8] = 0, 0
    packed = rtn.quantize(weight, Grouped(4, 8, symmetric))
    assert packed.scales.dtype == torch.float16 and packed.scales.isfinite().all() and (packed.scales > 0).all()
    assert torch.equal(packed.dequantize(torch.float32)[weight == 0], weight[weight == 0])
    assert not rtn.quantize(torch.zeros(2, 8), Grouped(4, 8, symmetric)).dequantize().any()


@pytest.mark.parametrize(("scale", "dtype"), [(1e-6, torch.float32), (0.02, torch.float16), (1e7, torch.float32)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_are_float16_where_it_holds_them(scale, dtype, symmetric):
    weight = random(4, 16, scale=scale)
    packed = rtn.quantize(weight, Grouped(8, symmetric=symmetric))
    assert packed.scales.dtype == dtype
    assert (packed.dequantize(torch.float32) - weight).abs().max() <= 0.51 * packed.scales.float().max()


def test_the_least_float32_is_still_held():
    weight = torch.full((1, 8), 1e-45)
    assert rtn.quantize(weight, Grouped(8)).dequantize(torch.float32).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_widened_first_and_give_values_in_their_own_dtype(dtype):
    weight = random(5, 32).to(dtype)
    packed = rtn.quantize(weight, Grouped(4, 8))
    assert packed.dtype == dtype and packed.equal(rtn.quantize(weight.float(), Grouped(4, 8)))


def test_bands_of_rows_change_nothing(monkeypatch):
    weight = random(9, 16) * torch.logspace(-9, 0, 9)[:, None]  # one band alone would have float16 scales
    whole = rtn.quantize(weight, Grouped(4, 8, False))
    monkeypatch.setattr(rtn, "BAND", 32)
    assert whole.scales.dtype == torch.float32 and rtn.quantize(weight, Grouped(4, 8, False)).equal(whole)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinite_weights_are_refused(bad):
    weight = random(3, 8)
    weight[2, 5] = bad
    with pytest.raises(CheckpointError, match=r"^layers\.0\.0\.mixer\.in_proj\.weight: .*NaN or infinite"):
        rtn.quantize(weight, Grouped(4), "layers.0.0.mixer.in_proj.weight")


def test_groups_that_do_not_come_out_even_are_refused_by_name():
    with pytest.raises(UsageError, match=r"^the\.matrix: 24 inputs do not divide into groups of 128; choose groups of 8"):
        rtn.quantize(random(3, 24), Grouped(4, 128), "the.matrix")
