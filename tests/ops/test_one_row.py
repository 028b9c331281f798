"""The product of a single row, dealt out to the threads."""

import pytest
import torch

from leanlm.ops import eager, reference


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("out", [2048, 2049])
@pytest.mark.parametrize("shape", [(512,), (1, 512), (1, 1, 512)])
@pytest.mark.parametrize("with_bias", [False, True])
@torch.no_grad()
def test_one_row_on_two_threads(two_threads, out, shape, with_bias):
    weight, x = torch.randn(out, 512), torch.randn(shape)
    bias = torch.randn(out) if with_bias else None
    assert weight.numel() >= eager.LARGE
    got = eager.linear(x, weight, bias)
    assert got.shape == (*shape[:-1], out)
    torch.testing.assert_close(got, reference.linear(x, weight, bias), rtol=1e-4, atol=1e-3)


def test_gradients_take_the_ordinary_way(two_threads):
    weight, x = torch.randn(1024, 512, requires_grad=True), torch.randn(1, 512)
    eager.linear(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.expand(1024, -1))
