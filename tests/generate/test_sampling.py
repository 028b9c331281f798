"""Which settings are greedy, which are refused, and that the flags cost no torch."""

import subprocess
import sys

import pytest

from leanlm.errors import UsageError
from leanlm.generate.sampling import Sampling


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"repetition_penalty": 1.3},
        {"compat": "mamba_ssm"},
        {"temperature": 0},
        {"temperature": 0.0, "do_sample": True, "top_p": 0.5},
        {"top_k": 1, "temperature": 0.7, "do_sample": True},
        {"do_sample": False, "temperature": 0.7, "top_k": 50},
    ],
)
def test_greedy(given):
    assert Sampling.of(**given).greedy


@pytest.mark.parametrize(
    "given", [{"do_sample": True}, {"temperature": 1.0}, {"top_p": 1.0}, {"top_k": 0}, {"min_p": 0.0}, {"top_k": 2}]
)
def test_a_filter_given_means_to_sample(given):
    assert not Sampling.of(**given).greedy


def test_fields_left_alone_are_greedy_and_changed_ones_sample():
    assert Sampling().greedy
    assert not Sampling(temperature=0.8).greedy
    assert not Sampling(top_p=0.9).greedy


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_k": 2.5},
        {"top_p": 1.01},
        {"top_p": -0.5},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"compat": "gpt"},
        {"topk": 3},
        {"temperature": "warm"},
    ],
)
def test_values_without_meaning_are_refused_by_name(given):
    with pytest.raises(UsageError, match=next(iter(given))) as refused:
        Sampling.of(**given)
    assert "\n" not in str(refused.value)


def test_sampling_or_its_fields_but_not_both():
    assert Sampling.given(Sampling(top_k=3), {"top_p": None}).top_k == 3
    with pytest.raises(UsageError, match="top_p"):
        Sampling.given(Sampling(top_k=3), {"top_p": 0.5})


def test_importing_leanlm_and_sampling_loads_no_torch():
    code = "import sys, leanlm; leanlm.Sampling(top_k=3); print('torch' in sys.modules, leanlm.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False ")
