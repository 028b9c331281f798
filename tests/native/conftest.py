"""The native library on every instruction set that this machine has; the tests are skipped where it was not built."""

import ctypes
import functools
import re
from pathlib import Path

import pytest
from torch import Tensor

HEADER = Path(__file__).parents[2] / "native" / "include" / "leanlm.h"
NUMBERS = {"int": ctypes.c_int, "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "float": ctypes.c_float}
ISAS = ("portable", "avx2", "avx512")


class Library:
    """library.norm(x, x.stride(0), ...): tensors are passed as their addresses, None as a null pointer."""

    def __init__(self, path: str):
        self.functions = ctypes.CDLL(path)
        text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
        self.parameters = {
            name: [ctypes.c_void_p if "*" in p else NUMBERS[p.split()[-2]] for p in parameters.split(",")]
            for name, parameters in re.findall(r"int leanlm_(\w+)\(([^)]*)\);", text)
            if parameters != "void"
        }

    def __getattr__(self, name: str):
        function = getattr(self.functions, f"leanlm_{name}")
        function.argtypes = self.parameters.get(name, [])

        def call(*arguments):
            result = function(*(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments))
            assert result == 0, f"leanlm_{name} returned {result}"

        return call


@functools.cache
def opened(path: str) -> Library:
    return Library(path)


@pytest.fixture(scope="session")
def native():
    try:
        from leanlm.ops import native
    except ImportError as error:
        pytest.skip(str(error))
    return native


@pytest.fixture(params=ISAS)
def isa(request, native):
    """The name of the instruction set that the library runs on during the test."""
    lib = native.library()
    before = lib.leanlm_isa()
    if lib.leanlm_set_isa(request.param.encode()):
        pytest.skip(f"this CPU has no {request.param}")
    yield request.param
    lib.leanlm_set_isa(before)


@pytest.fixture
def threads(native):
    """threads(n) sets how many there are, until the test ends."""
    lib = native.library()
    before = lib.leanlm_threads()
    yield lambda count: lib.leanlm_set_threads(count)
    lib.leanlm_set_threads(before)


@pytest.fixture
def library(native, isa) -> Library:
    """The functions of leanlm.h, on every instruction set."""
    return opened(str(native.path()))
