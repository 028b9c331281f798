"""How GPU kernels are launched: what they need of a machine, the few configurations that are tried, how autograd sees them, and
what serves where one does not compile. The one place that imports Triton first.

Under TRITON_INTERPRET=1, set before Triton is imported, kernels run on tensors of the CPU, slowly: so they are tested.
"""

import functools
import subprocess
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from leanlm import env
from leanlm.errors import first_line

try:
    import triton
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError
except ImportError as error:
    raise ImportError(
        f"Triton cannot be imported ({first_line(error)}); it comes with torch for CUDA: install that, or pip install triton"
    ) from error

CAPABILITY = (8, 0)  # Ampere, the first with TF32 and bfloat16 products
LAUNCHES = ((4, 2), (8, 3))  # warps and pipeline stages that are tried; each takes seconds to compile
NOT_COMPILED = ("C compiler", "PassManager::run failed", "kernel image")  # in errors that have no type of their own
BROKEN: dict[str, str] = {}  # operations one of whose kernels did not compile, and why


def interpreted() -> bool:
    """Whether kernels are run by Triton's interpreter. Asked of Triton, which looks when a kernel is defined."""
    return bool(triton.knobs.runtime.interpret)


def check(device: str) -> None:
    """Raises ImportError with the reason where kernels cannot run on tensors of this type of device."""
    if interpreted():
        return
    if device != "cuda":
        raise ImportError(f"kernels run on CUDA devices; on a {device} only for tests, under {env.TRITON_INTERPRET.name}=1")
    old = [too_old(number) for number in range(torch.cuda.device_count())]
    if old and all(old):
        raise ImportError(old[0])


def too_old(number: int) -> str:
    """Why kernels cannot run on this card; empty where they can."""
    found = torch.cuda.get_device_capability(number)
    if found >= CAPABILITY:
        return ""
    found, needed = (".".join(map(str, capability)) for capability in (found, CAPABILITY))
    return f"{torch.cuda.get_device_name(number)} has compute capability {found} and the kernels need {needed}"


@functools.cache
def left_to_torch(device: torch.device) -> bool:
    """Whether kernels cannot run on this one of several devices, which is said once."""
    reason = too_old(device.index) if device.type == "cuda" else ""
    if reason:
        warnings.warn(f"no GPU kernels on {device}, plain torch serves instead, slower: {reason}", stacklevel=3)
    return bool(reason)


def guarded(op: str, kernels: Callable, plain: Callable) -> Callable:
    """`kernels`, with `plain` in its place for float64, for tensors without elements and on cards that are too old, and from
    then on where a kernel does not compile. torch.compile leaves it as it is."""

    @torch.compiler.disable
    @functools.wraps(plain)
    def run(*arguments, **named):
        tensors = [t for t in (*arguments, *named.values()) if isinstance(t, Tensor)]
        if op in BROKEN or left_to_torch(tensors[0].device) or any(t.dtype == torch.float64 or not t.numel() for t in tensors):
            return plain(*arguments, **named)
        try:
            with torch.cuda.device_of(tensors[0]):
                return kernels(*arguments, **named)
        except Exception as error:
            if not failed_to_compile(error):
                raise
            give_up(op, error)
            return plain(*arguments, **named)

    return run


def failed_to_compile(error: Exception) -> bool:
    """Also where Triton finds no C compiler for the few lines that start a kernel, that compiler fails, or the driver does not
    take what was made."""
    known = (CompilationError, OutOfResources, PTXASError, subprocess.CalledProcessError)
    return isinstance(error, known) or (isinstance(error, RuntimeError) and any(said in str(error) for said in NOT_COMPILED))


def give_up(op: str, error: Exception) -> None:
    """Says once that the operation goes on without its kernels."""
    if op not in BROKEN:
        BROKEN[op] = f"{type(error).__name__}: {first_line(error)}"
        warnings.warn(f"{op}: a kernel did not compile, plain torch goes on, slower ({BROKEN[op]})", stacklevel=3)


def differentiable(op: str, forward: Callable, backward: Callable, plain: Callable) -> Callable:
    """An operation under autograd, of which the arguments alone are kept.

    `backward(gradients, *arguments)` returns a gradient or None for each argument, in any float dtype. Where one of its kernels
    does not compile, `plain` is differentiated instead.
    """

    @functools.wraps(plain)
    def run(*arguments, **named):
        return _Differentiable.apply(op, forward, backward, plain, *_ordered(plain, arguments, named))

    return run


def _ordered(plain: Callable, arguments: Sequence, named: dict) -> list:
    """All arguments by position, the defaults of `plain` where nothing was given."""
    code, defaults = plain.__code__, plain.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount]
    known = dict(zip(names[len(names) - len(defaults) :], defaults)) | dict(zip(names, arguments)) | named
    return [known[name] for name in names]


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, op, forward, backward, plain, *arguments):
        ctx.op, ctx.gradients, ctx.plain = op, backward, plain
        ctx.places = [i for i, value in enumerate(arguments) if isinstance(value, Tensor)]
        ctx.rest = [None if isinstance(value, Tensor) else value for value in arguments]
        ctx.save_for_backward(*(arguments[i] for i in ctx.places))
        return forward(*arguments)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        arguments = list(ctx.rest)
        for place, tensor in zip(ctx.places, ctx.saved_tensors):
            arguments[place] = tensor
        try:
            found = by_autograd(ctx.plain, gradients, arguments) if ctx.op in BROKEN else ctx.gradients(gradients, *arguments)
        except Exception as error:
            if not failed_to_compile(error):
                raise
            give_up(ctx.op, error)
            found = by_autograd(ctx.plain, gradients, arguments)
        asked = ctx.needs_input_grad[4:]
        cast = (g.to(a.dtype) if g is not None and need else None for g, a, need in zip(found, arguments, asked, strict=True))
        return None, None, None, None, *cast


def by_autograd(plain: Callable, gradients: Sequence[Tensor | None], arguments: Sequence) -> list[Tensor | None]:
    """The gradient of every argument, computed by running plain torch under autograd."""
    with torch.enable_grad():
        leaves = [a.detach().requires_grad_(a.is_floating_point()) if isinstance(a, Tensor) else a for a in arguments]
        outputs = plain(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    wanted = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
    pairs = [(y, g) for y, g in zip(outputs, gradients) if y is not None and y.requires_grad]
    found = torch.autograd.grad([y for y, _ in pairs], [leaves[i] for i in wanted], [g for _, g in pairs], allow_unused=True)
    return [dict(zip(wanted, found)).get(i) for i in range(len(leaves))]


def tuned(key: Sequence[str], blocks: Sequence[dict] = ({},)) -> Callable:
    """Decorates a kernel: the fastest of `blocks` and LAUNCHES for each `key` of its arguments, measured at the first call and
    remembered on disk. The interpreter takes the first."""
    configs = [triton.Config(dict(block), num_warps=w, num_stages=s) for block in blocks for w, s in LAUNCHES]
    return triton.autotune(configs[:1] if interpreted() else configs, key=list(key), cache_results=not interpreted())


def precision(*tensors: Tensor) -> str:
    """Of products of float32 tiles: TF32 where torch may use it or an operand has no more digits, else three TF32 products
    that together are float32."""
    half = any(t.dtype in (torch.bfloat16, torch.float16) for t in tensors)
    return "tf32" if half or torch.get_float32_matmul_precision() != "highest" else "tf32x3"


def tile(n: int, most: int, least: int = 16) -> int:
    """The power of two that covers n, within what a product of tiles takes."""
    return max(least, min(most, triton.next_power_of_2(n)))


def rows_contiguous(x: Tensor) -> Tensor:
    """x with its last axis contiguous; other axes may have any stride."""
    return x if x.stride(-1) == 1 else x.contiguous()
