"""The table of implementations: what is chosen, how a choice is forced, and why others were passed over."""

import sys

import pytest
import torch

from leanlm import ops
from leanlm.errors import UsageError
from leanlm.ops import dispatch, eager, reference


@pytest.mark.parametrize("op", dispatch.OPERATIONS)
def test_the_fastest_is_chosen_and_the_reference_can_be_forced(op, monkeypatch):
    monkeypatch.delenv("LEANLM_IMPL", raising=False)
    assert dispatch.implementation(op, "cpu") is getattr(eager, op)
    assert dispatch.explain(op, "cpu") == ("eager", ())
    monkeypatch.setenv("LEANLM_IMPL", "reference")
    assert dispatch.implementation(op, "cpu") is getattr(reference, op)
    assert dispatch.explain(op, "cpu") == ("reference", ())


def test_every_operation_of_the_surface_is_in_the_table():
    own = (name for name, value in vars(ops).items() if callable(value) and value.__module__ == "leanlm.ops")
    surface = {name for name in own if not name.startswith("__")}  # which torch.compile leaves there
    assert surface - {"Tensor"} == set(dispatch.OPERATIONS)


def test_an_unknown_name_is_a_usage_error_that_lists_the_known_ones(monkeypatch):
    monkeypatch.setenv("LEANLM_IMPL", "quick")
    with pytest.raises(UsageError, match=r"LEANLM_IMPL=quick: .*eager, .*reference"):
        ops.linear(torch.ones(1, 2), torch.ones(3, 2))


def test_what_cannot_be_imported_is_passed_over_with_its_reason(monkeypatch):
    monkeypatch.delenv("LEANLM_IMPL", raising=False)
    monkeypatch.setitem(dispatch.TABLE, ("linear", "cpu"), ("missing_kernels", "eager"))
    monkeypatch.setattr(dispatch, "choose", dispatch.choose.__wrapped__)
    name, refused = dispatch.explain("linear", "cpu")
    assert name == "eager" and refused[0][0] == "missing_kernels" and "missing_kernels" in refused[0][1]


def test_a_forced_name_applies_only_where_it_exists(monkeypatch):
    monkeypatch.setitem(dispatch.TABLE, ("linear", "cpu"), ("eager",))
    monkeypatch.setattr(dispatch, "choose", dispatch.choose.__wrapped__)
    monkeypatch.setenv("LEANLM_IMPL", "reference")
    assert dispatch.explain("linear", "cpu")[0] == "eager"
    assert dispatch.explain("ssd", "cpu")[0] == "reference"


def test_an_operation_without_any_implementation_says_so(monkeypatch):
    monkeypatch.setitem(dispatch.TABLE, ("linear", "cpu"), ("missing_kernels",))
    monkeypatch.setattr(dispatch, "choose", dispatch.choose.__wrapped__)
    with pytest.raises(UsageError, match="linear has no implementation for cpu"):
        dispatch.implementation("linear", "cpu")


@pytest.fixture
def choosing(monkeypatch):
    """Chooses anew in every call, and warns anew."""
    monkeypatch.delenv("LEANLM_IMPL", raising=False)
    monkeypatch.setattr(dispatch, "choose", dispatch.choose.__wrapped__)
    dispatch._say_once.cache_clear()
    yield
    dispatch._say_once.cache_clear()


@pytest.fixture
def triton_launch(choosing):
    pytest.importorskip("triton", reason="Triton is not installed")
    from leanlm.ops import triton_launch

    return triton_launch


def test_without_triton_plain_torch_serves_a_gpu_and_says_so_once(choosing, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "leanlm.ops.triton_launch", raising=False)
    with pytest.warns(UserWarning, match=r"no GPU kernels here, plain torch serves instead.*pip install triton") as told:
        for op in dispatch.KERNELS:
            name, refused = dispatch.explain(op, "cuda")
            assert name == "eager" and refused[0][0] == "triton" and "Triton cannot be imported" in refused[0][1]
    assert len(told) == 1


def test_kernels_serve_a_gpu_and_can_be_forced_on_a_cpu_under_the_interpreter(triton_launch, monkeypatch):
    monkeypatch.setattr(triton_launch, "interpreted", lambda: True)
    for op in set(dispatch.OPERATIONS) - {"packed_attend"}:
        assert dispatch.explain(op, "cuda") == ("triton" if op in dispatch.KERNELS else "eager", ())
    monkeypatch.setenv("LEANLM_IMPL", "triton")
    for op in dispatch.OPERATIONS:
        assert dispatch.explain(op, "cpu")[0] == ("triton" if op in dispatch.KERNELS else "eager")


def test_kernels_forced_on_a_cpu_without_the_interpreter_are_refused_with_the_reason(triton_launch, monkeypatch):
    monkeypatch.setattr(triton_launch, "interpreted", lambda: False)
    monkeypatch.setenv("LEANLM_IMPL", "triton")
    with pytest.warns(UserWarning, match="kernels run on CUDA devices; on a cpu only for tests, under TRITON_INTERPRET=1"):
        assert dispatch.explain("ssd", "cpu")[0] == "eager"


def test_a_card_that_is_too_old_is_named(triton_launch, monkeypatch):
    monkeypatch.setattr(triton_launch, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "Tesla T4")
    with pytest.warns(UserWarning, match=r"Tesla T4 has compute capability 7\.5 and the kernels need 8\.0"):
        assert dispatch.explain("ssd", "cuda")[0] == "eager"


def test_of_several_cards_the_one_that_is_used_counts(triton_launch, monkeypatch):
    monkeypatch.setattr(triton_launch, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: ((7, 5), (9, 0))[number])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: ("Tesla T4", "NVIDIA H100")[number])
    assert dispatch.explain("ssd", "cuda") == ("triton", ())
    triton_launch.left_to_torch.cache_clear()
    with pytest.warns(UserWarning, match=r"no GPU kernels on cuda:0, .* Tesla T4 has compute capability 7\.5") as told:
        assert all(triton_launch.left_to_torch(torch.device("cuda", 0)) for _ in range(2))
    assert len(told) == 1 and not triton_launch.left_to_torch(torch.device("cuda", 1))
    triton_launch.left_to_torch.cache_clear()


def test_what_is_slower_than_it_should_be_is_told_with_its_reason(triton_launch, monkeypatch):
    monkeypatch.setattr(triton_launch, "interpreted", lambda: True)
    monkeypatch.setitem(dispatch.TABLE, ("packed_attend", "cuda"), ("eager",))  # its kernel comes with torch
    assert dispatch.fallbacks("cuda") == {}
    monkeypatch.setitem(triton_launch.BROKEN, "ssd", "PTXASError: no such instruction")
    assert dispatch.fallbacks("cuda") == {"ssd": "PTXASError: no such instruction"}
    monkeypatch.setitem(dispatch.TABLE, ("linear", "cuda"), ("missing_kernels", "eager"))
    assert dispatch.fallbacks("cuda")["linear"].startswith("not missing_kernels: ")
