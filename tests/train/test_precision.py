"""The loss scale: down where gradients overflow, up after a while, and an end to it."""

import pytest

from leanlm.errors import CheckFailed
from leanlm.train.precision import FIRST_SCALE, GROWTH_INTERVAL, LossScale
from leanlm.train.recipe import Compute


def test_only_float16_has_a_scale():
    assert LossScale.first(Compute(dtype="float16")) == LossScale(FIRST_SCALE)
    for dtype in ("float32", "bfloat16"):
        scale = LossScale.first(Compute(dtype=dtype))
        assert scale.value == 1 and scale.after(True) == scale


def test_it_halves_and_doubles():
    scale = LossScale(1024.0)
    scale = scale.after(False)
    assert scale == LossScale(512.0, 0, 1)
    for _ in range(GROWTH_INTERVAL - 1):
        scale = scale.after(True)
    assert scale == LossScale(512.0, GROWTH_INTERVAL - 1, 1)
    assert scale.after(True) == LossScale(1024.0, 0, 1)
    assert scale.after(False) == LossScale(256.0, 0, 2)


def test_where_nothing_fits_the_run_ends():
    scale = LossScale(FIRST_SCALE)
    with pytest.raises(CheckFailed, match="overflow float16"):
        for _ in range(100):
            scale = scale.after(False)
    assert scale.value == 2
