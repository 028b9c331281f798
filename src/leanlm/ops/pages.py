"""CPU memory in huge pages (2 MB instead of 4 kB), where the system gives them to who asks.

Decoding reads all weights once per token, and with small pages much of that time goes into finding out where they lie: most of
all in virtual machines, where every look-up is two.
"""

import math
import mmap
from pathlib import Path

import torch
from torch import Tensor

HUGE = 2 << 20
SLAB = 256 << 20  # address space taken at once, at most; memory is taken where it is first written to
LINE = 64  # bytes of a processor's cache, at multiples of which tensors begin
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def offered() -> bool:
    """Whether this system gives huge pages to memory that asks for them."""
    try:
        return hasattr(mmap, "MADV_HUGEPAGE") and "[never]" not in SETTING.read_text()
    except OSError:
        return False


class Arena:
    """Tensors one after the other in huge pages, each a storage of its own; a slab of them is given back when the last of its
    tensors is gone. Where no huge pages are offered the tensors are torch's own."""

    def __init__(self, nbytes: int):
        """For about so many bytes; where that is less than a huge page, tensors are torch's own as well."""
        self.slab_bytes = min(SLAB, nbytes)
        self.slab: mmap.mmap | None = None
        self.used = 0
        self.huge = nbytes >= HUGE and offered()

    def zeros(self, shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A new tensor on the CPU; its memory is taken as it is written."""
        count = math.prod(shape)
        if not self.huge or not count:
            return torch.zeros(shape, dtype=dtype)
        start = self._take(count * dtype.itemsize)
        return torch.frombuffer(self.slab, dtype=dtype, count=count, offset=start).view(shape)

    def copy(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The same numbers, in that dtype, contiguous, without gradients; on another device there."""
        dtype = dtype or tensor.dtype
        if not tensor.is_cpu:
            return tensor.detach().to(dtype, copy=True)
        return self.zeros(tensor.shape, dtype).copy_(tensor.detach())

    def _take(self, size: int) -> int:
        """Where in the slab `size` bytes begin that are new."""
        size = -(-size // LINE) * LINE
        if self.slab is None or self.used + size > len(self.slab):
            self.slab = mmap.mmap(-1, max(self.slab_bytes, size) + HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self.slab.madvise(mmap.MADV_HUGEPAGE)
            self.used = -torch.frombuffer(self.slab, dtype=torch.uint8, count=1).data_ptr() % HUGE
        start, self.used = self.used, self.used + size
        return start
