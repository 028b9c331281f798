"""The table of implementations: what is chosen, how a choice is forced, and why others were passed over."""

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
    surface = {name for name, value in vars(ops).items() if callable(value) and value.__module__ == "leanlm.ops"}
    assert surface - {"Tensor"} == set(dispatch.OPERATIONS)


def test_an_unknown_name_is_a_usage_error_that_lists_the_known_ones(monkeypatch):
    monkeypatch.setenv("LEANLM_IMPL", "quick")
    with pytest.raises(UsageError, match=r"LEANLM_IMPL=quick: .*eager, reference"):
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
