"""The native library on every instruction set that this machine has, or on the one that LEANLM_ISA names."""

import pytest

from leanlm import env
from native_library import Library, opened

ISAS = ("portable", "avx2", "avx512")


@pytest.fixture(params=ISAS)
def isa(request, native):
    """The name of the instruction set that the library runs on during the test."""
    if env.ISA.get() not in ("", request.param):
        pytest.skip(f"LEANLM_ISA is {env.ISA.get()}")
    lib = native.library()
    before = lib.leanlm_isa()
    if lib.leanlm_set_isa(request.param.encode()):
        pytest.skip(f"this CPU has no {request.param}")
    yield request.param
    lib.leanlm_set_isa(before)


@pytest.fixture
def library(native, isa) -> Library:
    """The functions of leanlm.h, on every instruction set."""
    return opened(str(native.path()))
