"""What a layer keeps of a token for its backward pass by the GPU kernels, interpreted: the formulas of docs/cuda.md."""

import pytest
import torch

from leanlm.model.config import DiscreteMamba2, GatedMLP, Mamba1, Mamba2, Norm
from leanlm.model.language_model import Sublayer
from leanlm.train.precision import autocast
from leanlm.train.recipe import Compute

D, I, H, G, N, R, F = 16, 32, 4, 2, 6, 3, 40  # noqa: E741
LAYERS = {
    "mamba2": (Mamba2(I, I // H, N, G), 6 * D + 18 * I + 8 * G * N + 18 * H),
    "discrete_mamba2": (DiscreteMamba2(I, H, G, N), 6 * D + 22 * I + 8 * G * N + 10 * H),
    "mamba1": (Mamba1(I, N, 4, R), 6 * D + 36 * I + 4 * N + 4 * R),
    "gated_mlp": (GatedMLP(F), 8 * D + 8 * F),
}


def kept(sublayer: Sublayer, length: int) -> int:
    """Bytes of the storages that autograd holds, without parameters."""
    held, storages = [], {}
    own = {parameter.untyped_storage().data_ptr() for parameter in sublayer.parameters()}

    def hold(tensor):
        held.append(tensor)  # so that no storage has the place of another
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(1, length, D, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor), autocast(Compute(dtype="bfloat16"), x.device):
        sublayer(x)
    return sum(nbytes for place, nbytes in storages.items() if place not in own)


@pytest.mark.parametrize("name", LAYERS)
def test_bytes_per_token(name, monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    if torch.cuda.is_available():
        pytest.skip("kernels are not interpreted beside a card")
    monkeypatch.setenv("LEANLM_IMPL", "triton")
    mixer, stated = LAYERS[name]
    sublayer = Sublayer(D, Norm("rms", 1e-5), mixer)
    sublayer.reset(0.02, 0.02)
    assert kept(sublayer, 128) - kept(sublayer, 64) == 64 * stated
