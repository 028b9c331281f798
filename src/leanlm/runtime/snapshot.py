"""What the weights of a module were when a program was made of them, and whether they still are: asked before every token."""

from collections.abc import Sequence
from itertools import chain
from operator import attrgetter, is_

from torch import Tensor, nn

from leanlm.model.linear import Matrix
from leanlm.model.packed import Packed

_version = attrgetter("_version")


class Identity:
    """Which objects a few dicts hold, and where the tensors among them lie.

    They are kept alive, and so is the memory of the tensors: neither an object nor an address can come back as another.
    """

    def __init__(self, tables: Sequence[dict[str, object]]):
        self.tables = tables
        self.held = self._objects()
        self.tensors = [one for one in self.held if isinstance(one, Tensor)]
        self.memory = [tensor.detach() for tensor in self.tensors]  # of its own, where `.data` of the tensor is replaced
        self.addresses = self._addresses()

    def same(self) -> bool:
        now = self._objects()
        return len(now) == len(self.held) and all(map(is_, now, self.held)) and self._addresses() == self.addresses

    def _objects(self) -> list[object]:
        return list(chain.from_iterable(map(dict.values, self.tables)))

    def _addresses(self) -> list[int]:
        return list(map(Tensor.data_ptr, self.tensors))


class Written(Identity):
    """The same, and how often torch has counted that the tensors were written to."""

    def __init__(self, tables: Sequence[dict[str, object]]):
        super().__init__(tables)
        self.counted = [tensor for tensor in self.tensors if not tensor.is_inference()]
        self.versions = self._versions()

    def same(self) -> bool:
        return super().same() and self._versions() == self.versions

    def _versions(self) -> list[int]:
        return list(map(_version, self.counted))


class Snapshot:
    """The weights of a module, which it does not keep alive.

    `same` sees weights that are replaced, or written to in ways that torch counts; it touches as little memory as it can,
    since a small model's token leaves none of it in a cache. `same_throughout` sees also what is uncommon: writes that torch
    does not count (through `.data`, by fused optimisers, to inference tensors) to all but the matrices, of which there are no
    copies, and changes inside packed matrices, which are immutable.
    """

    def __init__(self, module: nn.Module):
        inside = list(module.modules())
        packed = [one for one in inside if isinstance(one, Packed)]
        others = [one for one in inside if not isinstance(one, Packed)]
        self.slots = Written([t for one in others for t in (one._parameters, one._buffers, one._modules) if t])
        self.packed = Written([one._buffers for one in packed])
        matrices = {id(one.weight) for one in others if isinstance(one, Matrix)}
        self.small = [weight.detach() for weight in module.parameters() if id(weight) not in matrices]
        self.values = [weight.clone() for weight in self.small]

    def same(self) -> bool:
        return self.slots.same()

    def same_throughout(self) -> bool:
        return self.same() and self.packed.same() and all(map(Tensor.equal, self.small, self.values))
