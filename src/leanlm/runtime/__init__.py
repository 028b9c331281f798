"""How a model is run where nothing is to be learnt: natively on the CPU, by CUDA graphs on a GPU, else as the module it is."""

import functools
import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from leanlm import env
from leanlm.model import ternary
from leanlm.model.language_model import LanguageModel

OWN = ("leanlm.model.", nn.ModuleList.__module__)  # where the classes are from that can be lowered
Run = Callable[..., Tensor]  # run(tokens, state, last_only=False) -> logits, as LanguageModel.forward

_RUNNING: "weakref.WeakKeyDictionary[LanguageModel, tuple[str, Run]]" = weakref.WeakKeyDictionary()


def of(module: LanguageModel) -> Run:
    """What runs this module best: called as the module with a state, without gradients.

    A module whose mathematics somebody has changed (a subclass, hooks, another `forward`) is run as it is, and so is one whose
    weights are latents.
    """
    kind = module.device.type
    if kind not in ("cpu", "cuda") or module.dtype == torch.float64 or env.IMPL.get() or changed(module):
        return module
    if kind == "cpu" and unavailable():
        return module
    found = _RUNNING.get(module)
    if found is None or found[0] != kind:
        found = _RUNNING[module] = kind, _made(kind, module)
    return found[1]


def _made(kind: str, module: LanguageModel) -> Run:
    if kind == "cuda":
        from leanlm.runtime.cuda_graph import CudaGraphRuntime

        return CudaGraphRuntime(module)
    from leanlm.runtime.native import NativeRuntime

    return NativeRuntime(module)


def changed(module: LanguageModel) -> bool:
    """Whether the module, or one inside it, does or may do something else than leanlm's own classes say, or is being trained
    in another format than it computes in."""
    if global_hooks._global_forward_hooks or global_hooks._global_forward_pre_hooks or ternary.latent(module):
        return True
    return any(
        m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) or not type(m).__module__.startswith(OWN)
        for m in module.modules()
    )


@functools.cache
def unavailable() -> str:
    """Why the native library cannot be used; empty where it can."""
    try:
        import leanlm.runtime.native  # noqa: F401
    except ImportError as error:
        return str(error)
    return ""
