"""The native library's functions, declared by reading its header."""

import ctypes
import functools
import re
from pathlib import Path

from torch import Tensor

HEADER = Path(__file__).parents[1] / "native" / "include" / "leanlm.h"
NUMBERS = {"int": ctypes.c_int, "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "float": ctypes.c_float}


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
