"""The optional packages that reading compressed text, parquet and arrow files, and clusters, need: extra `data`."""

import importlib
from types import ModuleType

from leanlm.errors import UsageError

NEEDED_FOR = {
    "zstandard": "reading zstd files",
    "pyarrow": "reading arrow files",
    "pyarrow.parquet": "reading parquet files",
    "datatrove.executor": "working on a cluster",
}


def package(name: str) -> ModuleType:
    """An optional package of `NEEDED_FOR`; raises UsageError naming the extra that brings it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        brings = name.partition(".")[0]
        raise UsageError(f'{NEEDED_FOR[name]} needs the package {brings}: pip install "leanlm[data]"') from None
