"""GPTQ against an elimination written the slow way: explicit inverse, one column at a time, its row and column removed."""

import numpy as np
import pytest
import torch

from leanlm.errors import CheckFailed, CheckpointError, LeanLMError, UsageError
from leanlm.model.format import Grouped
from leanlm.quantize import gptq, rtn

SHAPES = [(1, 1), (3, 8), (5, 24), (16, 48), (7, 160)]
FORMATS = [
    Grouped(bits, group, symmetric) for bits, group in ((2, 8), (3, 8), (3, 0), (4, 16), (6, 0)) for symmetric in (True, False)
]

CASES = [(shape, format) for shape in SHAPES for format in FORMATS if not format.group or shape[1] % format.group == 0]


def layer(R, n, seed=0, dead=(), dtype=torch.float64):
    """A weight, and the second moments of correlated inputs of unequal sizes, some of them always zero."""
    generator = torch.Generator().manual_seed(seed)
    weight, mix, x = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((R, n), (n, n), (2 * n + 5, n)))
    x = x @ mix * torch.rand(n, generator=generator, dtype=torch.float64)
    x[:, list(dead)] = 0
    return weight.to(dtype), (2 / len(x) * x.T @ x).to(dtype)


def fit(weight, bits, symmetric):
    """Scale, as float16, and zero of every row of [R, width]."""
    low, high = np.minimum(weight.min(1), 0), np.maximum(weight.max(1), 0)
    if symmetric:
        high = np.maximum(high, -low)
        low = -high
    scale = (high - low) / (2**bits - 1)
    scale = np.where(scale > 0, scale, 1).astype(np.float32).astype(np.float16).astype(np.float64)  # torch too rounds twice
    return scale, np.full_like(scale, 2 ** (bits - 1)) if symmetric else np.clip(np.round(-low / scale), 0, 2**bits - 1)


def eliminate(weight, hessian, format, act_order, damping):
    """(codes, weights) [R, n]: optimal brain quantisation in a fixed order (Frantar et al. 2023, section 3)."""
    W, H = weight.numpy().copy(), hessian.numpy().copy()
    n, most, width = W.shape[1], 2**format.bits - 1, format.group or W.shape[1]
    sizes = H.diagonal().copy()
    for i in np.flatnonzero(sizes == 0):
        H[i, i], W[:, i] = 1, 0
    inverse = np.linalg.inv(H + damping * H.diagonal().mean() * np.eye(n))
    left = sorted(range(n), key=lambda i: -sizes[i]) if act_order else list(range(n))
    static = act_order or format.group == 0
    grids = {g: fit(W[:, g * width : (g + 1) * width], format.bits, format.symmetric) for g in range(n // width)}
    codes, found = np.zeros(W.shape, np.uint8), np.zeros(W.shape)
    while left:
        i = left.pop(0)
        if not static and i % width == 0:
            grids[i // width] = fit(W[:, i : i + width], format.bits, format.symmetric)
        scale, zero = grids[i // width]
        code = np.clip(np.round(W[:, i] / scale) + zero, 0, most)
        codes[:, i], found[:, i] = code, scale * (code - zero)
        error = (W[:, i] - found[:, i]) / inverse[i, i]
        W[:, left] -= np.outer(error, inverse[i, left])
        inverse = inverse - np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return codes, found


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("shape", "format"), CASES, ids=str)
def test_the_codes_of_the_slow_elimination(shape, format, act_order):
    for seed, dead in enumerate([(), (0, shape[1] // 2, shape[1] - 1)[: shape[1] // 4]]):
        weight, hessian = layer(*shape, seed, dead)
        wanted, values = eliminate(weight, hessian, format, act_order, 0.01)
        done = gptq.quantize(weight, hessian, format, act_order=act_order)
        assert np.array_equal(done.weight.unpacked().numpy(), wanted)
        assert np.allclose(done.weight.dequantize().numpy(), values, rtol=1e-6)
        error = weight.numpy() - values
        assert np.isclose(done.objective, np.trace(error @ hessian.numpy() @ error.T), rtol=1e-6) and done.damping == 0.01

        narrow = gptq.quantize(weight.float(), hessian.float(), format, act_order=act_order)
        assert narrow.objective == pytest.approx(done.objective, rel=1e-3)
        assert narrow.weight.dtype == torch.float32 and narrow.weight.shape == shape


@pytest.mark.parametrize("block", [1, 7, 24, 128, 500])
@pytest.mark.parametrize("format", [Grouped(3, 24), Grouped(3, 80), Grouped(4)], ids=str)
def test_the_size_of_blocks_changes_nothing(format, block):
    weight, hessian = layer(6, 240)
    wanted = gptq.quantize(weight, hessian, format, block=240)
    assert gptq.quantize(weight, hessian, format, block=block).weight.equal(wanted.weight)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("format", [Grouped(2, 16), Grouped(3, 16), Grouped(4, 32, False), Grouped(6), Grouped(8)], ids=str)
def test_it_beats_round_to_nearest(format, act_order):
    for seed in range(5):
        weight, hessian = layer(24, 64, seed, dtype=torch.float32)
        nearest = rtn.quantize(weight, format).dequantize()
        assert gptq.quantize(weight, hessian, format, act_order=act_order).objective < gptq.objective(weight - nearest, hessian)


def test_independent_inputs_leave_round_to_nearest():
    """A diagonal Hessian has nothing to correct."""
    weight, format = layer(8, 32)[0], Grouped(4, 8)
    done = gptq.quantize(weight, torch.diag(torch.arange(1.0, 33)), format)
    assert done.weight.equal(rtn.quantize(weight, format))


def test_dead_inputs_get_zero_weights_and_do_not_widen_the_grid():
    weight, hessian = layer(4, 16, dead=[3, 9])
    weight[:, 3] = 1000
    done = gptq.quantize(weight, hessian, Grouped(4, 8))
    assert not done.weight.dequantize()[:, [3, 9]].any() and done.weight.scales.max() < 2
    silent = gptq.quantize(weight, torch.zeros(16, 16), Grouped(4, 8))
    assert not silent.weight.dequantize().any() and silent.objective == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 5, 30])
def test_a_singular_hessian_is_damped_until_it_is_not(rank, dtype):
    x = torch.randn(rank, 32, generator=torch.Generator().manual_seed(rank), dtype=dtype)
    weight, hessian = layer(8, 32, dtype=dtype)[0], x.T @ x
    done = gptq.quantize(weight, hessian, Grouped(4, 8), damping=0)
    assert 0 < done.damping < 1
    assert done.objective < gptq.objective(weight - rtn.quantize(weight, Grouped(4, 8)).dequantize(), hessian)
    assert gptq.quantize(weight, hessian, Grouped(4, 8)).damping == 0.01
    assert gptq.quantize(weight, layer(8, 32, dtype=dtype)[1], Grouped(4, 8), damping=0).damping == 0


def test_damping_grows_tenfold_while_the_factorisation_fails():
    """Smallest eigenvalue -0.05 of the mean diagonal: a damping of 0.01 is too little, 0.1 is enough."""
    weight, hessian = layer(4, 8)[0], torch.eye(8, dtype=torch.float64)
    hessian[0, 1] = hessian[1, 0] = 1.05
    assert gptq.quantize(weight, hessian, Grouped(4)).damping == pytest.approx(0.1)
    hessian[0, 1] = hessian[1, 0] = 5
    with pytest.raises(LeanLMError, match=r"^a\.matrix: .*8 inputs are not positive even with a damping of 0\.1; give more"):
        gptq.quantize(weight, hessian, Grouped(4), name="a.matrix")


def test_arguments_are_not_changed():
    weight, hessian = layer(1, 16, dead=[2])
    copies = weight.clone(), hessian.clone()
    gptq.quantize(weight, hessian, Grouped(4, 8), act_order=True)
    assert torch.equal(weight, copies[0]) and torch.equal(hessian, copies[1])


def test_refusals_name_the_matrix():
    weight, hessian = layer(4, 24)
    with pytest.raises(UsageError, match=r"^a\.matrix: 24 inputs do not divide into groups of 16"):
        gptq.quantize(weight, hessian, Grouped(4, 16), name="a.matrix")
    with pytest.raises(UsageError, match="damping of 1"):
        gptq.quantize(weight, hessian, Grouped(4), damping=1)
    with pytest.raises(CheckFailed, match=r"^a\.matrix: its inputs are NaN or infinite"):
        gptq.quantize(weight, hessian / 0, Grouped(4), name="a.matrix")
    weight[1, 1] = float("nan")
    with pytest.raises(CheckpointError, match=r"^a\.matrix: holds NaN or infinite"):
        gptq.quantize(weight, hessian, Grouped(4), name="a.matrix")
