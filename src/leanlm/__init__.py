"""Lean language models: constant-size memory and few-bit weights, on a plain CPU and on GPUs.

The public names are loaded on first use, so that `import leanlm` costs nothing and loads no torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leanlm.api import Model, load
    from leanlm.generate.sampling import Sampling
    from leanlm.generate.session import Session
    from leanlm.model.config import ModelConfig
    from leanlm.model.state import State

__all__ = ["Model", "ModelConfig", "Sampling", "Session", "State", "__version__", "load"]

HOMES = {
    "load": "leanlm.api",
    "Model": "leanlm.api",
    "ModelConfig": "leanlm.model.config",
    "State": "leanlm.model.state",
    "Session": "leanlm.generate.session",
    "Sampling": "leanlm.generate.sampling",
}


def __getattr__(name: str):
    if name == "__version__":
        from importlib.metadata import version

        return version("leanlm")
    if name in HOMES:
        return getattr(importlib.import_module(HOMES[name]), name)
    raise AttributeError(f"module 'leanlm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
