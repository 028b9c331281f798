"""Gradients of every eager operation against finite differences in float64, initial states and tails included."""

import pytest
import torch

from leanlm.ops import dispatch, eager, packing
from leanlm.ops.merging import Cache, Reading
from leanlm.slots import Table


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)


def positive(*shape, seed=0):
    return (normal(*shape, seed=seed).detach().abs() + 0.1).requires_grad_()


def negative(*shape, seed=0):
    return (-positive(*shape, seed=seed).detach()).requires_grad_()


def one_token(*tensors):
    return tuple(t[:, :1].detach().clone().requires_grad_() for t in tensors)


SEGMENTS = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 2, 2]])
AT = torch.arange(5).expand(2, 5)
CONV = normal(2, 5, 3), normal(3, 4, seed=1), normal(3, seed=2), normal(2, 3, 3, seed=3)
SSD = normal(2, 5, 4, 1), negative(2, 5, 4, seed=1), normal(2, 5, 2, 2, seed=2), normal(2, 5, 2, 2, seed=3)
SSD_STATE = normal(2, 4, 1, 2, seed=4)
SCAN = normal(2, 5, 3), positive(2, 5, 3, seed=1), negative(3, 2, seed=2), normal(2, 5, 2, seed=3), normal(2, 5, 2, seed=4)
SCAN_STATE = normal(2, 3, 2, seed=5)
QKV = normal(2, 5, 4, 3), normal(2, 5, 2, 3, seed=1), normal(2, 5, 2, 3, seed=2)
GATED = normal(2, 4), normal(2, 4, seed=1), normal(4, seed=2)

CODES = torch.randint(16, (4, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
PACKED = {
    "codes": packing.pack(CODES, 4),
    "scales": torch.ones(4, 2).half() / 8,
    "zeros": CODES[:, :2],
    "g_idx": None,
    "bits": 4,
}
TRITS = {
    "codes": packing.pack(CODES % 3, 2),
    "scales": torch.tensor([0.5, 0.25]).half(),
    "starts": torch.tensor([0, 2], dtype=torch.int32),
}
TELESCOPE = {
    "weight_v": None,
    "cache": Cache(*(torch.zeros(2, 4, 2, 3).double() for _ in range(2)), torch.full((2, 4, 2), -torch.inf).double(), None),
    "read": [0, 0],
    "reading": Reading(Table(4, (2, 3)), 0.4, norm_k=torch.ones(3).double()),
}

# name, beginning with the operation: (its differentiable arguments, the others by name)
CHECKS = {
    "conv": (CONV, {}),
    "conv, silu": (CONV, {"activation": "silu"}),
    "conv, packed": (CONV, {"segments": SEGMENTS, "activation": "silu"}),
    "ssd": ((*SSD, SSD_STATE), {}),
    "ssd, packed": ((*SSD, SSD_STATE), {"segments": SEGMENTS}),
    "ssd, one token": ((*one_token(*SSD), SSD_STATE), {}),
    "ssd, one token, packed": ((*one_token(*SSD), SSD_STATE), {"segments": SEGMENTS[:, 1:2]}),
    "selective_scan": ((*SCAN, SCAN_STATE), {}),
    "selective_scan, packed": ((*SCAN, SCAN_STATE), {"segments": SEGMENTS}),
    "selective_scan, one token": ((*one_token(*SCAN[:2]), SCAN[2], *one_token(*SCAN[3:]), SCAN_STATE), {}),
    "attend": (QKV, {"first": AT.clamp(max=1), "last": AT, "key_positions": AT, "scale": 0.4}),
    "attend, window": (QKV, {"first": AT * 0, "last": AT, "key_positions": AT, "scale": 0.4, "window": 2}),
    "attend, one token": (
        (*one_token(QKV[0]), *QKV[1:]),
        {"first": AT[:, 1:2], "last": AT[:, 3:4], "key_positions": AT, "scale": 0.4},
    ),
    "packed_attend": (QKV, {"first": AT.clamp(max=1), "scale": 0.4, "window": 2}),
    "causal_attend": (QKV, {"scale": 0.4}),
    "telescope": ((*QKV, normal(2, 5, 2, seed=9)), {**TELESCOPE, "segments": None}),
    "telescope, packed": ((*QKV, normal(2, 5, 2, seed=9)), {**TELESCOPE, "segments": SEGMENTS}),
    "telescope, one token": (one_token(*QKV, normal(2, 5, 2, seed=9)), {**TELESCOPE, "segments": None}),
    "rms_norm": ((normal(2, 4), normal(4, seed=1)), {"eps": 1e-5}),
    "rms_norm, round first": ((normal(2, 4), normal(4, seed=1)), {"eps": 1e-5, "round_first": True}),
    "layer_norm": ((normal(2, 4), normal(4, seed=1), normal(4, seed=2)), {"eps": 1e-5}),
    "gated_norm": (GATED, {"eps": 1e-5, "groups": 2}),
    "gated_norm, norm first": (GATED, {"eps": 1e-5, "groups": 2, "norm_before_gate": True}),
    "rotate": ((normal(2, 5, 2, 5), normal(2, 5, 2, seed=1), normal(2, 5, 2, seed=2)), {}),
    "grouped_linear": ((normal(2, 5, 6),), PACKED),
    "ternary_linear": ((normal(2, 5, 6),), {**TRITS, "along_rows": True}),
    "ternary_linear, columns": ((normal(2, 5, 6),), {**TRITS, "along_rows": False}),
    "linear": ((normal(2, 5, 3), normal(4, 3, seed=1), normal(4, seed=2)), {}),
}


def operation(name: str) -> str:
    return name.split(",")[0]


def outputs(found):
    """All tensors but the logarithms of a cache's weights, some of which are -inf."""
    return (found[0], found[1].k, found[1].v) if isinstance(found, tuple) and isinstance(found[1], Cache) else found


def test_every_operation_is_checked():
    assert {operation(name) for name in CHECKS} == set(dispatch.OPERATIONS)


@pytest.mark.parametrize("name", CHECKS)
def test_gradients_match_finite_differences(name, monkeypatch):
    monkeypatch.setattr(eager, "SSD_CHUNK", 2)  # five tokens: two whole chunks and a padded one
    monkeypatch.setattr(eager, "SCAN_CHUNK", 2)
    differentiable, others = CHECKS[name]
    check = getattr(eager, operation(name))
    assert torch.autograd.gradcheck(lambda *tensors: outputs(check(*tensors, **others)), differentiable)
