"""LEANLM_ISA and LEANLM_THREADS: obeyed, or refused in one line."""

import os
import subprocess
import sys

import pytest

from leanlm.errors import UsageError

REFUSED = [("ISA", "avx3"), ("ISA", "AVX2"), ("THREADS", "0"), ("THREADS", "-1"), ("THREADS", "two"), ("THREADS", "257")]


@pytest.fixture
def opened(native, monkeypatch):
    """opened(ISA="portable") opens the library as a new process with LEANLM_ISA=portable would."""
    lib = native.library()
    before = lib.leanlm_isa(), lib.leanlm_threads()

    def opened(**variables: str):
        for name in ("ISA", "THREADS"):
            monkeypatch.setenv(f"LEANLM_{name}", variables.get(name, ""))
        return native.library.__wrapped__()

    yield opened
    lib.leanlm_set_isa(before[0])
    lib.leanlm_set_threads(before[1])


@pytest.mark.parametrize("variable, value", REFUSED)
def test_what_cannot_be_is_refused(opened, variable, value):
    with pytest.raises(UsageError, match=f"^LEANLM_{variable}={value}: "):
        opened(**{variable: value})


def test_what_can_be_is_obeyed(opened):
    lib = opened(ISA="portable", THREADS="3")
    assert (lib.leanlm_isa(), lib.leanlm_threads()) == (b"portable", 3)


def test_refused_in_one_line_at_the_command_line(native):
    argv = [sys.executable, "-m", "leanlm", "generate", "def ", "--genlen", "1"]
    environment = {**os.environ, "LEANLM_ISA": "avx3", "LEANLM_IMPL": ""}
    found = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120)
    assert (found.returncode, found.stdout, found.stderr.count("\n")) == (2, "", 1)
    assert found.stderr.startswith("error: LEANLM_ISA=avx3: ")
